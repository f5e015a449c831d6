"""The named blocks equal the flatbuffer's operators, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from firmware_ref.blocks import bc_resblock, bc_resblock_of, res_norm, res_norm_of
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, parse
from firmware_ref.run import Interpreter
from firmware_ref.verify import random_inputs


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
    assert (block.expand is None) == (name != "stage2.block1")
    assert np.array_equal(bc_resblock(values[source], block), values[f"{name}.sum"])
    assert values[f"{name}.sum"].std() > 1


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
    with pytest.raises(InputError, match=r"'stage1\.res_norm\.mean'"):
        res_norm_of(wrong, "stage1.res_norm")
    with pytest.raises(InputError, match=r"no operator 'stage9\.block1\.frequency_conv'"):
        bc_resblock_of(graph, "stage9.block1")
    with pytest.raises(InputError, match=r"no operator 'stem\.mean'"):
        res_norm_of(graph, "stem")
