"""The INT8 rules: how real numbers become the integers of a TFLite flatbuffer.

TFLite 8-bit quantization specification: weights symmetric per output channel in [-127, 127],
activations affine per tensor in [-128, 127], biases int32 with scale ``s_in * s_w``.
"""

from __future__ import annotations

import numpy as np

from firmware_ref.graph import Quantization

INT8_MIN, INT8_MAX = -128, 127
WEIGHT_MAX = 127
# Keeps bias plus the largest accumulator of this family (255 * 127 * K, K < 2^14) inside int32.
BIAS_LIMIT = 2**30

# Where the output channels of a convolution's weights lie.
WEIGHT_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3}

# LOGISTIC's output is fixed by the TFLite specification.
LOGISTIC_OUTPUT = Quantization((1 / 256,), (-128,))

# Operators that copy or select integers: output and input share scale and zero point.
SAME_SCALE = frozenset(
    {"MAX_POOL_2D", "AVERAGE_POOL_2D", "RESHAPE", "TRANSPOSE", "PAD", "SLICE", "CONCATENATION"}
)


def activation_quantization(low: float, high: float) -> Quantization:
    """Scale and zero point for reals in [low, high], widened to include zero exactly.

    The scale is a float32; a range of no width gets scale 1.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = np.float32((high - low) / (INT8_MAX - INT8_MIN))
    if not np.isfinite(scale):
        raise ValueError(f"range [{low}, {high}] is not finite")
    if scale < np.finfo(np.float32).tiny:
        scale = np.float32(1)
    zero_point = int(np.clip(np.rint(INT8_MIN - low / float(scale)), INT8_MIN, INT8_MAX))
    return Quantization((float(scale),), (zero_point,))


def weight_scale(weight: np.ndarray, bias: np.ndarray, input_scale: float, axis: int) -> np.ndarray:
    """Float32 scales, (O,), of convolution weights with output channels on ``axis``.

    ``max |w| / 127`` a channel. One whose weights all but vanish beside its bias gets a larger
    scale, so that the bias stays within ``BIAS_LIMIT`` steps of ``input_scale * scale``, but for
    the rounding of float32. One too small for float32 gets 1.
    """
    others = tuple(a for a in range(np.ndim(weight)) if a != axis)
    scale = np.abs(np.asarray(weight, np.float32)).max(axis=others) / np.float32(WEIGHT_MAX)
    with np.errstate(over="ignore"):  # a scale of infinity is refused by who reads the file
        floor = np.abs(np.asarray(bias, np.float32)) / np.float32(BIAS_LIMIT * float(input_scale))
    scale = np.maximum(scale, floor)
    smaller = np.minimum(scale, bias_scale(input_scale, scale))
    return np.where(smaller < np.finfo(np.float32).tiny, np.float32(1), scale)


def quantize_weight(weight: np.ndarray, scale: np.ndarray, axis: int) -> np.ndarray:
    """Float32 to int8 in [-127, 127] along ``axis``: ``round_half_even(w / scale)``."""
    shape = [1] * np.ndim(weight)
    shape[axis] = len(scale)
    steps = np.rint(np.asarray(weight, np.float32) / np.reshape(scale, shape))
    return np.clip(steps, -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)


def bias_scale(input_scale: float, scale: np.ndarray) -> np.ndarray:
    """Float32 scales, (O,), of an int32 bias: ``s_in * s_w``."""
    with np.errstate(over="ignore"):
        return np.float32(input_scale) * np.asarray(scale, np.float32)


def quantize_bias(bias: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(O,) float32 to int32 within `BIAS_LIMIT`: ``round_half_even(b / scale)`` in float64.

    `weight_scale` keeps biases there but for a few hundred steps, which float32 may round away.
    """
    steps = np.rint(np.asarray(bias, np.float64) / np.asarray(scale, np.float64))
    return np.clip(steps, -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)


def quantize(x: np.ndarray, quantization: Quantization) -> np.ndarray:
    """Reals to int8 under a per-tensor quantisation, rounding half to even in float32.

    What float32 cannot hold saturates like any other large value.
    """
    with np.errstate(over="ignore"):
        steps = np.rint(np.asarray(x, np.float32) / np.float32(quantization.scale[0]))
    return np.clip(steps + quantization.zero_point[0], INT8_MIN, INT8_MAX).astype(np.int8)


def dequantize(q: np.ndarray, quantization: Quantization) -> np.ndarray:
    """Int8 to float32 reals: ``scale * (q - zero_point)``."""
    steps = np.asarray(q, np.float32) - np.float32(quantization.zero_point[0])
    return np.float32(quantization.scale[0]) * steps
