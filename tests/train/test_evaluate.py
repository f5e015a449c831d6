"""Metrics worked by hand, and against scikit-learn."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from train.evaluate import Metrics, as_table, measure, module_probabilities

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


def test_the_form_for_json() -> None:
    values = measure(PROBABILITIES, LABELS, CLIPS).to_dict(["dog", "rain", "sea"])
    assert values["class_accuracy"] == {"dog": 1.0, "rain": 1.0, "sea": 0.0}
    assert values["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert values["clips"] == 3 and values["windows"] == 5
    absent = measure(PROBABILITIES[:3], LABELS[:3], CLIPS[:3]).to_dict(["dog", "rain", "sea"])
    assert absent["class_accuracy"]["sea"] is None


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


def test_the_table_has_a_line_a_model() -> None:
    metrics: dict[str, Metrics] = {
        name: measure(PROBABILITIES, LABELS, CLIPS) for name in ("float", "int8")
    }
    head, *lines = as_table(metrics).splitlines()
    assert [line.split()[0] for line in lines] == ["float", "int8"]
    assert {len(line) for line in (head, *lines)} == {len(head)}
    assert "66.67%" in lines[0] and "40.00%" in lines[0]
