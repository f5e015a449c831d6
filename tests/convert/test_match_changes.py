"""Every single change to an exported graph is refused, and the refusal names the operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from convert.match import MismatchError, match
from firmware_ref.graph import Operator
from tests.convert.drafts import Draft, one_ulp, refused
from train.qat import DeviceNetwork


def left_out(draft: Draft) -> None:
    """The mean of what should have been squared."""
    square = draft.operators.pop(draft.operator("stage1.res_norm.square"))
    number = draft.operator("stage1.res_norm.power_over_channels")
    inputs = (square.inputs[0], *draft.operators[number].inputs[1:])
    draft.operators[number] = replace(draft.operators[number], inputs=inputs)


def cut_short(draft: Draft) -> None:
    draft.operators.pop()
    draft.outputs = (draft.tensor("head.pool"),)


def twice(draft: Draft) -> None:
    operator = draft.operators[2]
    copy = draft.add("copy", draft.tensors[operator.outputs[0]].shape)
    draft.operators.insert(3, replace(operator, outputs=(copy,)))


def exchanged(layer: str) -> Callable[[Draft], None]:
    """The operands of a layer in the other order."""

    def change(draft: Draft) -> None:
        draft.change(layer, inputs=draft.operators[draft.operator(layer)].inputs[::-1])

    return change


def without_identity(weight: np.ndarray) -> None:
    """The block's input no longer added on the centre tap."""
    weight[:, 1] -= 1


# Each is one change to the exported graph, and the operator that the refusal has to name.
CHANGES: dict[str, tuple[Callable[[Draft], None], str]] = {
    "a weight, by one ulp": (lambda d: d.data("stem.conv", 1, one_ulp), "CONV_2D 'stem.conv'"),
    "a bias, by one ulp": (
        lambda d: d.data("stage1.block2.temporal_conv", 2, one_ulp),
        "DEPTHWISE_CONV_2D 'stage1.block2.temporal_conv'",
    ),
    "lambda, by one ulp": (
        lambda d: d.data("stem.res_norm.gain", 1, one_ulp),
        "ADD 'stem.res_norm.gain'",
    ),
    "a weight of a mean, by one ulp": (
        lambda d: d.data("stage1.res_norm.power", 1, one_ulp),
        "CONV_2D 'stage1.res_norm.power'",
    ),
    "the bias of a mean, by the least": (
        lambda d: d.data("stage2.res_norm.mean_over_channels", 2, one_ulp),
        "CONV_2D 'stage2.res_norm.mean_over_channels'",
    ),
    "a kernel upside down": (
        lambda d: d.data("stage1.block1.frequency_conv.band1", 1, lambda w: w[:, ::-1]),
        "DEPTHWISE_CONV_2D 'stage1.block1.frequency_conv.band1'",
    ),
    "an identity left out": (
        lambda d: d.data("stage1.block2.frequency_conv.band4", 1, without_identity),
        "DEPTHWISE_CONV_2D 'stage1.block2.frequency_conv.band4'",
    ),
    "the weights of two sub-bands exchanged": (
        lambda d: d.change(
            "stage1.block1.frequency_conv.band1",
            inputs=(
                d.tensor("stage1.block1.frequency_conv.rows1"),
                *d.operators[d.operator("stage1.block1.frequency_conv.band2")].inputs[1:],
            ),
        ),
        "DEPTHWISE_CONV_2D 'stage1.block1.frequency_conv.band1'",
    ),
    "the weights of two layers exchanged": (
        lambda d: d.change(
            "stage1.block1.project",
            inputs=(
                d.operators[d.operator("stage1.block1.project")].inputs[0],
                *d.operators[d.operator("stage1.block2.project")].inputs[1:],
            ),
        ),
        "CONV_2D 'stage1.block1.project'",
    ),
    "a stride": (lambda d: d.option("stem.conv", stride_w=1), "CONV_2D 'stem.conv'"),
    "a pool's stride": (lambda d: d.option("stage1.pool", stride_h=1), "MAX_POOL_2D 'stage1.pool'"),
    "a padding": (lambda d: d.option("stem.conv", padding="VALID"), "CONV_2D 'stem.conv'"),
    "the padding of a mean": (
        lambda d: d.option("stem.res_norm.mean", padding="SAME"),
        "CONV_2D 'stem.res_norm.mean'",
    ),
    "a sub-band's padding": (
        lambda d: d.option("stage2.block1.frequency_conv.band1", padding="SAME"),
        "DEPTHWISE_CONV_2D 'stage2.block1.frequency_conv.band1'",
    ),
    "a dilation": (
        lambda d: d.option("stage1.block2.frequency_conv.band2", dilation_h_factor=2),
        "DEPTHWISE_CONV_2D 'stage1.block2.frequency_conv.band2'",
    ),
    "an activation added": (
        lambda d: d.option("stage1.block2.mean", fused_activation="RELU"),
        "SUB 'stage1.block2.mean'",
    ),
    "an activation dropped": (
        lambda d: d.option("stage1.block2.sum", fused_activation="NONE"),
        "ADD 'stage1.block2.sum'",
    ),
    "an activation exchanged": (
        lambda d: d.option("stage1.block1.expand", fused_activation="RELU6"),
        "CONV_2D 'stage1.block1.expand'",
    ),
    "the operands of SUB exchanged": (exchanged("stem.res_norm"), "SUB 'stem.res_norm'"),
    "the operands of a variance exchanged": (
        exchanged("stage2.res_norm.variance"),
        "SUB 'stage2.res_norm.variance'",
    ),
    "an operand of another layer": (
        lambda d: d.change(
            "stage1.block2.sum",
            inputs=(d.tensor("stage1.block2.frequency_conv"), d.tensor("stage1.block1.project")),
        ),
        "ADD 'stage1.block2.sum'",
    ),
    "a factor for a square": (
        lambda d: d.change(
            "stage1.res_norm.square", inputs=(d.tensor("stage1.pool"), d.tensor("stem.conv"))
        ),
        "MUL 'stage1.res_norm.square'",
    ),
    "another kind": (
        lambda d: d.change("stage2.block1.sigmoid", kind="TANH"),
        "TANH 'stage2.block1.sigmoid'",
    ),
    "a pool of the other kind": (
        lambda d: d.change("head.pool", kind="MAX_POOL_2D"),
        "MAX_POOL_2D 'head.pool'",
    ),
    "a pool's window": (
        lambda d: d.option("stage1.block1.mean", filter_height=63),
        "AVERAGE_POOL_2D 'stage1.block1.mean'",
    ),
    "a result of another rank": (
        lambda d: d.tensors.__setitem__(
            d.tensor("logits"), replace(d.tensors[d.tensor("logits")], shape=(1, 1, 1, 4))
        ),
        "RESHAPE 'logits' has shape (1, 1, 1, 4)",
    ),
    "another shape than the operator's": (
        lambda d: d.tensors.__setitem__(
            d.tensor("stage2.block1.project"),
            replace(d.tensors[d.tensor("stage2.block1.project")], shape=(1, 1, 10, 11)),
        ),
        "CONV_2D 'stage2.block1.project' has shape (1, 1, 10, 11)",
    ),
    "an operator left out": (left_out, "CONV_2D 'stage1.res_norm.power_over_channels'"),
    "the last operator left out": (cut_short, "lacks 'logits'"),
    "an operator twice": (twice, "'copy'"),
    "another output": (
        lambda d: setattr(d, "outputs", (d.tensor("head.pool"),)),
        "returns another tensor: ['head.pool']",
    ),
    "a constant for output": (
        lambda d: setattr(d, "outputs", (d.tensor("classifier/bias"),)),
        "returns another tensor: ['classifier/bias']",
    ),
    "two outputs": (
        lambda d: setattr(d, "outputs", (*d.outputs, d.tensor("head.pool"))),
        "returns another tensor: ['logits', 'head.pool']",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_one_change_is_refused_by_name(draft: Draft, device: DeviceNetwork, what: str) -> None:
    change, words = CHANGES[what]
    change(draft)
    refused(draft, device, words)


@pytest.mark.parametrize("at", [0, 20, -1])
def test_an_extra_operator_is_refused(draft: Draft, device: DeviceNetwork, at: int) -> None:
    """A RELU between any two layers, whether or not it changes a value."""
    number = range(len(draft.operators))[at]
    source = draft.operators[number].inputs[0]
    extra = draft.add("extra", draft.tensors[source].shape)
    inputs = (extra, *draft.operators[number].inputs[1:])
    draft.operators[number] = replace(draft.operators[number], inputs=inputs)
    draft.operators.insert(number, Operator("RELU", (source,), (extra,)))
    refused(draft, device, "RELU 'extra'")


def test_another_input_shape_or_number_is_refused(draft: Draft, device: DeviceNetwork) -> None:
    draft.tensors[0] = replace(draft.tensors[0], shape=(1, 1, 128, 44))
    refused(draft, device, "the input has shape (1, 1, 128, 44)")
    graph = replace(Draft.of(device).graph(), inputs=(0, 1))
    with pytest.raises(MismatchError, match="2 inputs"):
        match(graph, device.graph, device.float_constants())
