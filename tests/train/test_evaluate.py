"""Metrics worked by hand, and against scikit-learn."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from firmware_ref.errors import InputError
from train.evaluate import (
    Group,
    average,
    by_source,
    evaluate,
    measure,
    module_probabilities,
    paired_interval,
)

# Three clips of 2, 1 and 2 windows, of classes 0, 1 and 2.
PROBABILITIES = np.array(
    [
        [0.9, 0.05, 0.05],
        [0.2, 0.5, 0.3],
        [0.3, 0.6, 0.1],
        [0.1, 0.5, 0.4],
        [0.3, 0.4, 0.3],
    ]
)
LABELS = np.array([0, 0, 1, 2, 2])
CLIPS = np.array([0, 0, 1, 2, 2])


def test_three_clips_by_hand() -> None:
    found = measure(PROBABILITIES, LABELS, CLIPS)
    # Clip means: [0.55, 0.275, 0.175], [0.3, 0.6, 0.1], [0.2, 0.45, 0.35].
    assert (found.windows, found.clips) == (5, 3)
    assert found.window_accuracy == pytest.approx(2 / 5)
    assert found.clip_accuracy == pytest.approx(2 / 3)
    chosen = (0.9, 0.2, 0.6, 0.4, 0.3)
    assert found.window_log_loss == pytest.approx(-sum(map(math.log, chosen)) / 5)
    assert found.clip_log_loss == pytest.approx(-sum(map(math.log, (0.55, 0.6, 0.35))) / 3)
    assert found.confusion.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]


# Six clips of three classes, five of one window; device 0 was heard in training, 1 was not, and
# device 2 recorded nothing here.
DEVICE_PROBABILITIES = np.array(
    [
        [0.8, 0.1, 0.1],  # clip 0, class 0, device 0: mean [0.7, 0.2, 0.1]
        [0.6, 0.3, 0.1],
        [0.5, 0.2, 0.3],  # clip 1, class 1, device 1
        [0.1, 0.9, 0.0],  # clip 2, class 1, device 0
        [0.25, 0.5, 0.25],  # clip 3, class 1, device 1
        [0.1, 0.5, 0.4],  # clip 4, class 2, device 0
        [0.3, 0.2, 0.5],  # clip 5, class 2, device 0
    ]
)
DEVICE_LABELS = np.array([0, 0, 1, 1, 1, 2, 2])
DEVICE_CLIPS = np.array([0, 0, 1, 2, 3, 4, 5])
DEVICES = np.array([0, 0, 1, 0, 1, 0, 0])
SEEN = (True, False, True)


def loss(*chosen: float) -> float:
    """Log-loss of the probabilities given to the true classes."""
    return -sum(map(math.log, chosen)) / len(chosen)


def assert_group(found: Group, clips: int, accuracy: float, log_loss: float) -> None:
    assert found.clips == clips
    assert found.accuracy == pytest.approx(accuracy, abs=1e-12)
    assert found.log_loss == pytest.approx(log_loss, abs=1e-12)


def test_classes_and_devices_by_hand() -> None:
    found = measure(DEVICE_PROBABILITIES, DEVICE_LABELS, DEVICE_CLIPS, DEVICES, SEEN)
    assert found.clip_accuracy == pytest.approx(4 / 6)
    assert found.clip_log_loss == pytest.approx(loss(0.7, 0.2, 0.9, 0.5, 0.4, 0.5))
    one, two, three = found.classes
    assert_group(one, 1, 1, loss(0.7))
    assert_group(two, 3, 2 / 3, loss(0.2, 0.9, 0.5))
    assert_group(three, 2, 1 / 2, loss(0.4, 0.5))
    losses = loss(0.7) + loss(0.2, 0.9, 0.5) + loss(0.4, 0.5)
    assert_group(found.macro, 6, 13 / 18, losses / 3)
    heard, new, absent = found.devices
    assert_group(heard, 4, 3 / 4, loss(0.7, 0.9, 0.4, 0.5))
    assert_group(new, 2, 1 / 2, loss(0.2, 0.5))
    assert absent == Group(0, None, None)
    assert found.seen_devices == heard and found.unseen_devices == new


def test_clips_and_right_ones_by_source_by_hand() -> None:
    """Clips 0 and 1 of above are right, 2 is not; the last two share a source."""
    sources = np.array(["b", "b", "a", "a", "a"])
    assert by_source(PROBABILITIES, LABELS, CLIPS, None, sources) == ((2, 1), (1, 1))
    assert by_source(PROBABILITIES, LABELS, CLIPS) == ((1, 1), (1, 1), (1, 0))
    assert evaluate(PROBABILITIES, LABELS, CLIPS, sources=sources).by_source == ((2, 1), (1, 1))


def test_a_paired_interval_counts_only_what_differs(rng: np.random.Generator) -> None:
    """By SciPy's paired bootstrap; what both have wrong, or right, makes it no wider."""
    clips = rng.integers(1, 10, 60)
    own, other = (np.stack([clips, rng.binomial(clips, p)], axis=1) for p in (0.9, 0.7))
    assert paired_interval(own, own) == (0.0, 0.0)

    def difference(n: np.ndarray, a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return (a - b).sum(axis=axis) / n.sum(axis=axis)

    wanted = scipy.stats.bootstrap(
        (clips, own[:, 1], other[:, 1]),
        difference,
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = paired_interval(own, other, resamples=20_000)
    assert found == pytest.approx((wanted.low, wanted.high), abs=0.004)
    own[0, 1] -= own[0, 0]
    assert paired_interval(own, other, resamples=20_000) != pytest.approx(found, abs=1e-6)


def test_what_has_no_clips_is_none() -> None:
    found = measure(PROBABILITIES[:3], LABELS[:3], CLIPS[:3])
    assert found.classes[2] == Group(0, None, None)
    assert_group(found.macro, 2, 1, loss(0.55, 0.6) * 2 / 2)
    assert found.unseen_devices == Group(0, None, None)
    assert found.devices == (found.seen_devices,)


def test_one_nudged_value_changes_a_figure() -> None:
    nudged = DEVICE_PROBABILITIES.copy()
    nudged[2] += (-1e-6, 1e-6, 0)
    found = measure(nudged, DEVICE_LABELS, DEVICE_CLIPS, DEVICES, SEEN)
    with pytest.raises(AssertionError):
        assert_group(found.classes[1], 3, 2 / 3, loss(0.2, 0.9, 0.5))
    with pytest.raises(AssertionError):
        assert_group(found.devices[1], 2, 1 / 2, loss(0.2, 0.5))
    assert_group(found.devices[0], 4, 3 / 4, loss(0.7, 0.9, 0.4, 0.5))


def test_the_same_clip_through_another_device_is_another_clip() -> None:
    apart = measure(DEVICE_PROBABILITIES, DEVICE_LABELS, DEVICE_CLIPS, DEVICES, SEEN)
    # Clips 2 (device 0) and 3 (device 1) are of one class: one recording through two devices.
    together = np.array([0, 0, 1, 2, 2, 4, 5])
    found = measure(DEVICE_PROBABILITIES, DEVICE_LABELS, together, DEVICES, SEEN)
    assert found.clips == 6 and found.devices == apart.devices and found.classes == apart.classes


def test_the_averages_of_the_report() -> None:
    """Tables 1 and 2 of the report: their averages are means of the figures above them."""
    accuracies = (49.3, 60.5, 40.2, 41.5, 71.1, 31.0, 52.3, 36.9, 74.2, 53.5)
    losses = (1.365, 1.192, 1.642, 1.600, 1.129, 1.909, 1.339, 1.915, 0.888, 1.426)
    found = average(Group(1, a / 100, x) for a, x in zip(accuracies, losses, strict=True))
    assert_group(found, 10, 0.5105, 1.4405)  # printed as 51.1 and 1.441
    seen = (1.204, 1.528, 1.297, 1.500, 1.438, 1.435)
    unseen = (1.445, 1.598, 1.521)
    for values, expected in ((seen, 1.400), (unseen, 1.521)):
        figure = average(Group(3300, 0.5, value) for value in values).log_loss
        assert figure is not None and round(figure, 3) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_is_refused(value: float) -> None:
    bad = PROBABILITIES.copy()
    bad[3, 1] = value
    with pytest.raises(InputError, match=r"no probabilities on 1 of 5 windows"):
        measure(bad, LABELS, CLIPS)


def test_the_form_for_json() -> None:
    values = measure(PROBABILITIES, LABELS, CLIPS).to_dict(["dog", "rain", "sea"])
    assert values["class_accuracy"] == {"dog": 1.0, "rain": 1.0, "sea": 0.0}
    assert values["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert values["clips"] == 3 and values["windows"] == 5
    absent = measure(PROBABILITIES[:3], LABELS[:3], CLIPS[:3]).to_dict(["dog", "rain", "sea"])
    assert absent["class_accuracy"]["sea"] is None and absent["class_log_loss"]["sea"] is None
    assert absent["class_clips"] == {"dog": 1, "rain": 1, "sea": 0}
    assert absent["macro_accuracy"] == 1.0
    assert not any(key.startswith(("device", "seen", "unseen", "intervals")) for key in absent)


def test_the_form_for_json_by_device() -> None:
    found = evaluate(DEVICE_PROBABILITIES, DEVICE_LABELS, DEVICE_CLIPS, DEVICES, SEEN)
    values = json.loads(json.dumps(found.to_dict(["a", "b", "c"], ["A", "S4", "S1"])))
    assert values["device_clips"] == {"A": 4, "S4": 2, "S1": 0}
    assert values["device_accuracy"] == {"A": 0.75, "S4": 0.5, "S1": None}
    assert values["device_log_loss"]["S4"] == pytest.approx(loss(0.2, 0.5))
    assert values["seen_devices"] == ["A", "S1"]
    assert (values["seen_accuracy"], values["unseen_accuracy"]) == (0.75, 0.5)
    assert values["seen_log_loss"] == pytest.approx(loss(0.7, 0.9, 0.4, 0.5))
    low, high = values["intervals"]["clip_accuracy"]
    assert low < 4 / 6 < high and values["intervals"]["sources"] == 6


def test_scikit_learn_agrees(rng: np.random.Generator) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports
        metrics = pytest.importorskip("sklearn.metrics")
    clips = rng.permutation(np.repeat(np.arange(40), rng.integers(1, 6, 40)))
    labels = (clips * 7 + clips // 10) % 5
    probabilities = rng.dirichlet(np.ones(5), len(clips))
    found = measure(probabilities, labels, clips)
    classes = np.arange(5)
    assert found.window_accuracy == pytest.approx(
        metrics.accuracy_score(labels, probabilities.argmax(axis=1))
    )
    assert found.window_log_loss == pytest.approx(
        metrics.log_loss(labels, probabilities, labels=classes)
    )
    means = np.array([probabilities[clips == clip].mean(axis=0) for clip in range(40)])
    truth = np.array([labels[clips == clip][0] for clip in range(40)])
    assert found.clip_accuracy == pytest.approx(metrics.accuracy_score(truth, means.argmax(axis=1)))
    assert found.clip_log_loss == pytest.approx(metrics.log_loss(truth, means, labels=classes))
    np.testing.assert_array_equal(
        found.confusion, metrics.confusion_matrix(truth, means.argmax(axis=1), labels=classes)
    )


def test_scikit_learn_agrees_by_class_and_device(rng: np.random.Generator) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports
        metrics = pytest.importorskip("sklearn.metrics")
    labels, devices = rng.integers(0, 4, 200), rng.integers(0, 3, 200)
    probabilities = rng.dirichlet(np.ones(4), 200)
    found = measure(probabilities, labels, np.arange(200), devices, (True, True, False))
    top, classes = probabilities.argmax(axis=1), np.arange(4)
    assert found.macro.accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, top))
    recalls = metrics.recall_score(labels, top, average=None)
    assert [group.accuracy for group in found.classes] == pytest.approx(list(recalls))
    for groups, numbers in ((found.classes, labels), (found.devices, devices)):
        for number, group in enumerate(groups):
            chosen = numbers == number
            expected = metrics.log_loss(labels[chosen], probabilities[chosen], labels=classes)
            assert_group(
                group, chosen.sum(), metrics.accuracy_score(labels[chosen], top[chosen]), expected
            )


def test_the_order_of_windows_does_not_matter(rng: np.random.Generator) -> None:
    order = rng.permutation(5)
    a = measure(PROBABILITIES, LABELS, CLIPS)
    b = measure(PROBABILITIES[order], LABELS[order], CLIPS[order])
    assert a.clip_log_loss == pytest.approx(b.clip_log_loss)
    assert a.confusion.tolist() == b.confusion.tolist()


def test_a_wrong_certain_prediction_costs_something_finite() -> None:
    found = measure(np.array([[1.0, 0.0]]), np.array([1]), np.array([0]))
    assert found.window_log_loss == pytest.approx(-math.log(1e-15))


class Linear(nn.Module):
    """Logits that show which window and channel they came from."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1:] == (3, 4, 2) and not self.training
        return self.dropout(x[:, :, 1, 0])


def test_probabilities_are_the_softmax_in_batches(rng: np.random.Generator) -> None:
    inputs = rng.standard_normal((10, 4, 2, 3)).astype(np.float32)
    logits = inputs[:, 1, 0, :].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for batch in (1, 4, 64):
        found = module_probabilities(Linear().train(), inputs, batch)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-6)
