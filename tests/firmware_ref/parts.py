"""How property-based tests run here, and random parts of models as hypothesis draws them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from tests.firmware_ref.build import Model

EXAMPLES = int(os.environ.get("ASC_EXAMPLES", "40"))
"""Examples of every property; ``ASC_EXAMPLES=5000`` searches for longer."""

few = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)

Case = tuple[Model, int, int]
"""A model under construction, its input and its output."""
Shape = tuple[int, ...]


class Draw:
    """Random parts of a model, drawn by hypothesis so that it can make them smaller."""

    def __init__(self, data: st.DataObject) -> None:
        self._draw = data.draw
        # Where all scales are powers of two, sums fall on ties.
        self._ties = self._draw(st.booleans())

    def whole(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return self._draw(st.integers(low, high))

    def one_of(self, values: Sequence[Any]) -> Any:
        return self._draw(st.sampled_from(values))

    def flag(self) -> bool:
        return self._draw(st.booleans())

    def rng(self) -> np.random.Generator:
        """For what is too large to be drawn value by value."""
        return np.random.default_rng(self.whole(0, 2**32 - 1))

    def scale(self, low: float = -8, high: float = -1) -> float:
        """A float32 scale between two powers of two."""
        if self._ties:
            return 2.0 ** self.whole(math.ceil(low), math.floor(high))
        return float(np.float32(2.0 ** self._draw(st.floats(low, high))))

    def zero(self) -> int:
        """A zero point, often at an end."""
        return self._draw(st.one_of(st.sampled_from([-128, 127, 0]), st.integers(-128, 127)))

    def grid(self, low: float = -8, high: float = -1) -> tuple[float, int]:
        """Scale and zero point."""
        return self.scale(low, high), self.zero()

    def short_grid(self) -> tuple[float, int]:
        """A scale of 12 bits, so that the product of two is exact in float32; and a zero point."""
        fraction, exponent = math.frexp(self.scale())
        return math.ldexp(round(fraction * 2**12), exponent - 12), self.zero()

    def shape(self, fewest: int = 2, most: int = 4, size: int = 6) -> Shape:
        """A batch of one, and ``fewest`` to ``most`` sizes in all."""
        rank = self.whole(fewest, most)
        return (1, *(self.whole(1, size) for _ in range(rank - 1)))

    def activation(self) -> int:
        """NONE, RELU, RELU_N1_TO_1 or RELU6."""
        return self.whole(0, 3)

    def steps(self, shape: Shape, reach: int) -> np.ndarray:
        """Integers in [-reach - 1, reach], or all at one end."""
        kind, rng = self.one_of(["any", "any", "low", "high"]), self.rng()
        if kind == "any":
            return rng.integers(-reach - 1, reach + 1, shape)
        return np.full(shape, -reach - 1 if kind == "low" else reach)

    def weights(self, model: Model, shape: Shape, axis: int, one_scale: bool = False) -> int:
        """Weights with one scale a channel or, on one occasion in three, one for all."""
        count = shape[axis] if not one_scale and self.whole(0, 2) else 1
        exponents = self.rng().uniform(-10, -5, count)
        # A product with a power of two is exact: see `FULLY_CONNECTED` about one scale for all.
        if self._ties or count == 1:
            exponents = np.rint(exponents)
        return model.tensor("w", shape, 2.0**exponents, 0, self.steps(shape, 127), axis=axis)

    def bias(self, model: Model, channels: int) -> list[int]:
        """An int32 bias without a scale, which no kernel reads."""
        data = self.steps((channels,), self.one_of([10, 5000, 10**6]))
        return [model.tensor("b", (channels,), data=data, dtype="int32")]
