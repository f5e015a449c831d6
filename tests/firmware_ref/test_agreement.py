"""Scales on which tflite-runtime and TFLM give the same codes, and that they move hardly at all."""

from __future__ import annotations

import numpy as np
import pytest

from firmware_ref.agreement import agreed, same_products, same_sigmoids
from firmware_ref.graph import Graph, Operator, Quantization, Tensor, parse
from firmware_ref.oracle import ORACLES
from firmware_ref.verify import verify
from tests.firmware_ref.build import Model


def pairs_model(first: float, second: float, out: Quantization) -> tuple[bytes, np.ndarray]:
    """MUL of a map with a column of constants, so that every pair of codes meets."""
    model = Model()
    x = model.tensor("x", (1, 256, 256), first, 0)
    codes = np.arange(-128, 128, dtype=np.int8)
    constant = model.tensor("c", (1, 256, 1), second, 0, data=codes[None, :, None])
    y = model.tensor("y", (1, 256, 256), out.scale[0], out.zero_point[0])
    model.add("MUL", [x, constant], [y])
    return model.pack([x], [y]), np.broadcast_to(codes, (1, 256, 256)).copy()


def disagreeing_scales() -> tuple[float, float, Quantization]:
    """Scales of a product for which float32 and double multipliers give different codes."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        first, second = (float(np.float32(s)) for s in rng.uniform(0.01, 0.1, 2))
        out = Quantization((float(np.float32(first * second * 128)),), (0,))
        if not same_products(first, second, out):
            return first, second, out
    pytest.fail("no such scales")


def test_products_that_differ_are_moved_together() -> None:
    first, second, out = disagreeing_scales()
    data, inputs = pairs_model(first, second, out)
    before = verify(parse(data), data, inputs, list(ORACLES.values()))
    assert sum(result.mismatches for result in before.oracles) > 0
    tensors = tuple(Tensor(name, (1, 2), "int8") for name in ("a", "b", "y"))
    graph = Graph(tensors, (Operator("MUL", (0, 1), (2,)),), (0,), (2,))
    grids = {"a": Quantization((first,), (0,)), "b": Quantization((second,), (0,)), "y": out}
    moved = agreed(graph, grids)
    assert {name for name in grids if moved[name] != grids[name]} == {"y"}
    assert moved["y"].scale[0] == pytest.approx(out.scale[0], rel=1e-4)
    assert agreed(graph, moved) == moved
    data, inputs = pairs_model(first, second, moved["y"])
    assert verify(parse(data), data, inputs, list(ORACLES.values())).ok


@pytest.mark.parametrize("zero_point", [-128, 0, 5])
def test_sigmoids_that_differ_are_moved_together(zero_point: int) -> None:
    """A tie on a power of two; every input code in both oracles."""
    tensors = tuple(Tensor(name, (1, 2), "int8") for name in ("x", "y"))
    graph = Graph(tensors, (Operator("LOGISTIC", (0,), (1,)),), (0,), (1,))
    grids = {"x": Quantization((2.0**-7,), (zero_point,)), "y": Quantization((1 / 256,), (-128,))}
    moved = agreed(graph, grids)
    assert moved["x"].scale[0] == pytest.approx(2.0**-7, rel=1e-3)
    model = Model()
    x = model.tensor("x", (1, 256), moved["x"].scale[0], zero_point)
    y = model.tensor("y", (1, 256), 1 / 256, -128)
    model.add("LOGISTIC", [x], [y])
    data = model.pack([x], [y])
    inputs = np.arange(-128, 128, dtype=np.int8)[None]
    assert verify(parse(data), data, inputs, list(ORACLES.values())).ok


@pytest.mark.parametrize(
    ("operators", "name"),
    [
        ([("MUL", (0, 1), 2), ("MAX_POOL_2D", (2,), 3)], "t2"),
        ([("MAX_POOL_2D", (0,), 1), ("LOGISTIC", (1,), 2)], "t1"),
        ([("MUL", (0, 1), 2), ("LOGISTIC", (0,), 3)], "t0"),
        ([("MUL", (2, 1), 3), ("MUL", (0, 1), 2)], "t2"),
    ],
    ids=["a product is pooled", "a sigmoid's input is pooled", "read before", "out of order"],
)
def test_a_scale_that_is_not_its_tensors_own_is_a_bug_of_the_caller(
    operators: list[tuple[str, tuple[int, ...], int]], name: str
) -> None:
    tensors = tuple(Tensor(f"t{number}", (1, 2), "int8") for number in range(4))
    made = tuple(Operator(kind, sources, (output,)) for kind, sources, output in operators)
    grids = dict.fromkeys((t.name for t in tensors), Quantization((0.1,), (0,)))
    with pytest.raises(AssertionError, match=f"{name}: its scale is fixed elsewhere"):
        agreed(Graph(tensors, made, (0,), (3,)), grids)


def test_a_scale_without_such_a_neighbour_stays() -> None:
    coarse = Quantization((9.5,), (0,))
    assert not same_sigmoids(coarse)
    tensors = tuple(Tensor(name, (1, 2), "int8") for name in ("x", "y"))
    graph = Graph(tensors, (Operator("LOGISTIC", (0,), (1,)),), (0,), (1,))
    assert agreed(graph, {"x": coarse, "y": Quantization((1 / 256,), (-128,))})["x"] == coarse
