"""The network as data: hand-worked shapes and counts, and every refusal."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from firmware_ref.arch import PRESETS, Layer, Network, layers, preset
from firmware_ref.errors import InputError

SMALL = Network("small", stem_channels=6, widths=(6, 8), blocks=(1, 1), pool_after=(1,))


def by_name(network: Network) -> dict[str, Layer]:
    table = {layer.name: layer for layer in layers(network)}
    assert len(table) == len(layers(network)), "a name is used twice"
    return table


def test_shapes_of_the_report_by_hand() -> None:
    network = preset("report-125k")
    assert network.stage_inputs() == {
        "stage1": (40, 64, 22),
        "stage2": (40, 32, 11),
        "stage3": (40, 16, 5),
        "stage4": (64, 16, 5),
    }
    table = by_name(network)
    assert table["input_norm"].output_shape == (3, 128, 44)
    assert table["stage2.pool"].output_shape == (40, 16, 5)
    assert table["stage3.block1.temporal_conv"].output_shape == (64, 1, 5)
    assert table["head.conv"].output_shape == (256, 16, 5)
    assert table["classifier"].output_shape == (10, 1, 1)


def test_a_small_network_layer_by_layer() -> None:
    stem, one, two = (6, 64, 22), (6, 64, 22), (8, 32, 11)
    row1, row2 = (6, 1, 22), (8, 1, 11)
    assert layers(SMALL) == (
        Layer("input_norm", "res_norm", (3, 128, 44)),
        Layer("stem.conv", "conv", stem, 6 * 3 * 25, 0, 6 * 3 * 25 * 64 * 22),
        Layer("stem.norm", "batch_norm", stem, 6, 6),
        Layer("stage1.block1.frequency_conv", "conv", one, 6 * 3, 0, 6 * 3 * 64 * 22),
        Layer("stage1.block1.sub_spectral_norm", "sub_spectral_norm", one, 6, 6),
        Layer("stage1.block1.mean", "mean", row1),
        Layer("stage1.block1.temporal_conv", "conv", row1, 6 * 3, 0, 6 * 3 * 22),
        Layer("stage1.block1.temporal_norm", "batch_norm", row1, 6, 6),
        Layer("stage1.block1.project", "conv", row1, 36, 0, 36 * 22),
        Layer("stage1.block1.sum", "add", one),
        Layer("stage1.pool", "max_pool", (6, 32, 11)),
        Layer("stage1.res_norm", "res_norm", (6, 32, 11)),
        Layer("stage2.block1.expand", "conv", two, 6 * 8, 0, 6 * 8 * 32 * 11),
        Layer("stage2.block1.expand_norm", "batch_norm", two, 8, 8),
        Layer("stage2.block1.frequency_conv", "conv", two, 8 * 3, 0, 8 * 3 * 32 * 11),
        Layer("stage2.block1.sub_spectral_norm", "sub_spectral_norm", two, 8, 8),
        Layer("stage2.block1.mean", "mean", row2),
        Layer("stage2.block1.temporal_conv", "conv", row2, 8 * 3, 0, 8 * 3 * 11),
        Layer("stage2.block1.temporal_norm", "batch_norm", row2, 8, 8),
        Layer("stage2.block1.project", "conv", row2, 64, 0, 64 * 11),
        Layer("stage2.block1.sum", "add", two),
        Layer("stage2.res_norm", "res_norm", two),
        Layer("head.conv", "conv", (256, 32, 11), 8 * 256, 0, 8 * 256 * 32 * 11),
        Layer("head.pool", "mean", (256, 1, 1)),
        Layer("classifier", "conv", (10, 1, 1), 2560, 10, 2560),
    )


def test_switches_change_only_their_layers() -> None:
    def changed(**values: Any) -> tuple[set[str], set[str]]:
        """Names that appear and names that vanish."""
        other, own = by_name(dataclasses.replace(SMALL, **values)), by_name(SMALL)
        return set(other) - set(own), set(own) - set(other)

    norms = {"input_norm", "stage1.res_norm", "stage2.res_norm"}
    assert changed(res_norm=False) == (set(), norms)
    assert changed(first_res_norm="stem") == ({"stem.res_norm"}, {"input_norm"})
    assert changed(stem_norm=False) == (set(), {"stem.norm"})
    assert changed(head_norm=True) == ({"head.norm"}, set())
    assert changed(head_channels=None) == (set(), {"head.conv"})
    assert changed(pool_after=(2,)) == ({"stage2.pool"}, {"stage1.pool"})
    assert changed(conv_bias=True) == (set(), set())

    biases = {n: layer.biases for n, layer in by_name(SMALL).items() if layer.kind == "conv"}
    with_bias = by_name(dataclasses.replace(SMALL, conv_bias=True))
    assert {n: b for n, b in biases.items() if b} == {"classifier": 10}
    assert all(with_bias[n].biases == with_bias[n].output_shape[0] for n in biases)


def test_sub_bands_multiply_only_the_sub_spectral_norms() -> None:
    own, split = by_name(SMALL), by_name(dataclasses.replace(SMALL, ssn_bands=4))
    for name, layer in own.items():
        factor = 4 if layer.kind == "sub_spectral_norm" else 1
        assert split[name].parameters == factor * layer.parameters


def test_odd_sizes_round_up_in_the_stem_and_down_in_the_pools() -> None:
    table = by_name(dataclasses.replace(SMALL, input_bands=125, input_frames=43))
    assert table["stem.conv"].output_shape == (6, 63, 22)
    assert table["stage1.pool"].output_shape == (6, 31, 11)


@pytest.mark.parametrize("name", PRESETS)
def test_a_network_survives_json(name: str) -> None:
    network = preset(name)
    assert Network.from_dict(json.loads(json.dumps(network.to_dict()))) == network
    assert network.name == name


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"widths": ()}, r"widths=\(\) and blocks"),
    ({"blocks": (1,)}, "same number of stages"),
    ({"widths": (6, 0)}, "between 1 and 1024"),
    ({"blocks": (1, -1)}, "between 1 and 1024"),
    ({"stem_channels": 1025}, "between 1 and 1024"),
    ({"head_channels": 0}, "between 1 and 1024"),
    ({"classes": 0}, "between 1 and 1024"),
    ({"input_bands": 0}, "between 1 and 1024"),
    ({"ssn_bands": 0}, "between 1 and 1024"),
    ({"ssn_bands": 3}, "ssn_bands=3 does not divide the 64 frequency bands of stage1"),
    ({"ssn_bands": 64}, "ssn_bands=64 does not divide the 32 frequency bands of stage2"),
    ({"input_channels": 2}, "input_channels=2; allowed are 1"),
    ({"first_res_norm": "head"}, "first_res_norm='head'; allowed are 'input' and 'stem'"),
    ({"pool_after": (3,)}, r"pool_after=\(3,\); stages are numbered 1 to 2"),
    ({"pool_after": (0,)}, "stages are numbered 1 to 2"),
    ({"input_frames": 1}, "stage2 has no input left; pool less"),
    ({"input_frames": 4, "pool_after": (1, 2)}, "the last max-pool leaves nothing; pool less"),
    ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
    ({"dropout": math.nan}, "dropout=nan"),
    ({"res_norm_lambda": 0}, r"res_norm_lambda=0 in \(0, 10\]"),
    ({"res_norm_lambda": math.inf}, "res_norm_lambda=inf"),
    ({"res_norm_epsilon": 0.0}, "res_norm_epsilon=0.0"),
    ({"stem_channels": 6.0}, "stem_channels=6.0 must be an integer"),
    ({"stem_channels": True}, "stem_channels=True must be an integer"),
    ({"head_channels": "16"}, "head_channels='16' must be an integer"),
    ({"widths": 6}, "widths=6 must be a list of at most 16 integers"),
    ({"widths": (6, "8")}, "must be a list of at most 16 integers"),
    ({"widths": (6,) * 17}, "must be a list of at most 16 integers"),
    ({"blocks": (True, 1)}, "must be a list of at most 16 integers"),
    ({"res_norm": 1}, "res_norm=1 must be true or false"),
    ({"conv_bias": None}, "conv_bias=None must be true or false"),
    ({"dropout": "0.1"}, "dropout='0.1' must be a number"),
    ({"first_res_norm": []}, r"first_res_norm=\(\) must be a string"),
    ({"name": 5}, "name=5 must be a string"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_a_value_out_of_range_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Network.from_dict({**SMALL.to_dict(), **values})
    assert "network" in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_and_missing_keys_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="unknown network key 'depth'; allowed: name, stem_chan"):
        Network.from_dict({**SMALL.to_dict(), "depth": 3})
    with pytest.raises(InputError, match="network key 'blocks' is missing"):
        Network.from_dict({"name": "a", "stem_channels": 6, "widths": [6]})


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown preset 'resnet'; known: report-125k, qti-c40"):
        preset("resnet")
