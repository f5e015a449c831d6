"""The named blocks equal the flatbuffer's operators, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from firmware_ref.blocks import bc_resblock, bc_resblock_of, res_norm, res_norm_of
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, Tensor, parse
from firmware_ref.run import Interpreter
from firmware_ref.verify import random_inputs
from tests.firmware_ref.build import network_graph
from tests.firmware_ref.conftest import SMALL


@pytest.fixture(scope="module")
def graph(model_bytes: bytes) -> Graph:
    return parse(model_bytes)


@pytest.fixture(scope="module")
def values(graph: Graph) -> dict[str, np.ndarray]:
    """Every activation by its layer name."""
    found = Interpreter(graph).run_all(random_inputs(graph, 3, 0))
    return {graph.tensors[index].name: value for index, value in found.items()}


@pytest.mark.parametrize("name", ["stage1.block1", "stage2.block1", "stage2.block2"])
def test_bc_resblock(graph: Graph, values: dict[str, np.ndarray], name: str) -> None:
    source, block = bc_resblock_of(graph, name)
    identity = name != "stage2.block1"
    assert (block.expand is None) == (block.mean_identity is not None) == identity
    assert len(block.frequency_conv.convolutions) == 2
    assert np.array_equal(bc_resblock(values[source], block), values[f"{name}.sum"])
    assert values[f"{name}.sum"].std() > 1


def test_bc_resblock_without_sub_bands() -> None:
    network = replace(SMALL, ssn_bands=1, input_bands=16, input_frames=12)
    whole = network_graph(network, np.random.default_rng(3))
    found = Interpreter(whole).run_all(random_inputs(whole, 3, 0))
    by_name = {whole.tensors[index].name: value for index, value in found.items()}
    for name in ("stage1.block1", "stage2.block1"):
        source, block = bc_resblock_of(whole, name)
        assert block.frequency_conv.padded is None
        assert np.array_equal(bc_resblock(by_name[source], block), by_name[f"{name}.sum"])


def test_a_nudged_bias_is_seen(graph: Graph, values: dict[str, np.ndarray]) -> None:
    """The comparison can fail: one channel's bias in the block, far enough for a step."""

    def nudged(tensor: Tensor) -> Tensor:
        if tensor.name != "stage1.block1.project/bias" or tensor.data is None:
            return tensor
        data = tensor.data.copy()
        data[2] += 2000
        return replace(tensor, data=data)

    wrong = replace(graph, tensors=tuple(map(nudged, graph.tensors)))
    source, block = bc_resblock_of(wrong, "stage1.block1")
    different = bc_resblock(values[source], block) != values["stage1.block1.sum"]
    assert set(np.nonzero(different)[3].tolist()) == {2}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("input_norm", "input"),
        ("stage1.res_norm", "stage1.pool"),
        ("stage2.res_norm", "stage2.block2.sum"),
    ],
)
def test_res_norm(graph: Graph, values: dict[str, np.ndarray], name: str, source: str) -> None:
    found, norm = res_norm_of(graph, name)
    assert found == source
    assert np.array_equal(res_norm(values[source], norm), values[name])
    assert values[name].std() > 1


def test_swapped_operands_are_put_right(graph: Graph, values: dict[str, np.ndarray]) -> None:
    swapped = replace(
        graph,
        operators=tuple(
            replace(o, inputs=o.inputs[::-1]) if o.kind in ("ADD", "MUL") else o
            for o in graph.operators
        ),
    )
    source, block = bc_resblock_of(swapped, "stage1.block1")
    assert np.array_equal(bc_resblock(values[source], block), values["stage1.block1.sum"])
    source, norm = res_norm_of(swapped, "stage1.res_norm")
    assert np.array_equal(res_norm(values[source], norm), values["stage1.res_norm"])


def test_another_wiring_is_refused(graph: Graph) -> None:
    wrong = replace(
        graph,
        operators=tuple(
            replace(o, inputs=o.inputs[::-1]) if o.kind == "SUB" else o for o in graph.operators
        ),
    )
    with pytest.raises(InputError, match=r"'stage1\.res_norm\.variance' is SUB of"):
        res_norm_of(wrong, "stage1.res_norm")
    with pytest.raises(InputError, match=r"'stage1\.block1\.mean' is SUB of"):
        bc_resblock_of(wrong, "stage1.block1")
    with pytest.raises(InputError, match=r"no operator 'stage9\.block1\.mean_identity'"):
        bc_resblock_of(graph, "stage9.block1")
    with pytest.raises(InputError, match=r"no operator 'stem\.mean_over_channels'"):
        res_norm_of(graph, "stem")
