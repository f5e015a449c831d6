"""The proof of an exported graph: it accepts what a converter may do and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tflite_runtime.interpreter as tflite_runtime
import torch

from convert.flatbuffer import write
from convert.match import MismatchError, match
from tests.convert.drafts import Draft, matched, one_ulp, refused
from tests.convert.members import REPORT, SMALL, Converted, examples
from train import qat_checkpoint
from train.qat import DeviceNetwork


def test_the_plan_matches_itself(draft: Draft, device: DeviceNetwork) -> None:
    found = matched(draft, device)
    written = [operator.outputs[0] for operator in device.graph.operators]
    assert found == {index: index for index in [0, *written]}


@pytest.mark.parametrize("seed", range(5))
def test_other_names_and_another_order_match(
    draft: Draft, device: DeviceNetwork, seed: int
) -> None:
    """Names are of no account; nor is the order in which operators of branches run."""
    draft.tensors = [replace(t, name=f"arith.{n}") for n, t in enumerate(draft.tensors)]
    rng = np.random.default_rng(seed)
    waiting, draft.operators = draft.operators, []
    known = {0} | {n for n, tensor in enumerate(draft.tensors) if tensor.data is not None}
    while waiting:
        ready = [n for n, operator in enumerate(waiting) if known >= set(operator.inputs)]
        draft.operators.append(waiting.pop(rng.choice(ready)))
        known |= set(draft.operators[-1].outputs)
    assert draft.operators != list(device.graph.operators)
    assert len(matched(draft, device)) == len(draft.operators) + 1


def test_what_the_converter_wrote_is_what_torch_computes(converted: Converted) -> None:
    """What the proof accepted in the real conversion, run by TFLite in float."""
    _, device = qat_checkpoint.load(converted.checkpoint)
    exported, constants = converted.exported, device.float_constants()
    network = REPORT if device.graph.tensors[0].shape[3] == 3 else SMALL
    assert match(exported, device.graph, constants)[exported.outputs[0]] == device.graph.outputs[0]
    x = examples(network, 1, 7)
    with torch.no_grad():
        wanted = DeviceNetwork(device.graph, constants)(x).numpy()
    interpreter = tflite_runtime.Interpreter(
        model_content=write(exported),
        experimental_op_resolver_type=tflite_runtime.OpResolverType.BUILTIN_REF,
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(exported.inputs[0], x.permute(0, 2, 3, 1).numpy())
    interpreter.invoke()
    found = interpreter.get_tensor(exported.outputs[0])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_a_nudge_in_what_the_converter_wrote_is_found(small: Converted) -> None:
    """The last value of every constant, in turn, by one ulp; equal constants are stored once."""
    _, device = qat_checkpoint.load(small.checkpoint)
    exported, constants = small.exported, device.float_constants()
    used = {index for operator in exported.operators for index in operator.inputs}
    tried = 0
    for index in sorted(used):
        old = exported.tensors[index].data
        if old is None or old.dtype != np.float32:
            continue
        tensors = list(exported.tensors)
        data = old.copy()
        data.flat[-1] = np.nextafter(data.flat[-1], np.float32(np.inf))
        tensors[index] = replace(tensors[index], data=data)
        with pytest.raises(MismatchError):
            match(replace(exported, tensors=tuple(tensors)), device.graph, constants)
        tried += 1
    assert tried >= len({value.tobytes() for value in constants.values()})


def test_operands_that_commute_may_be_exchanged(draft: Draft, device: DeviceNetwork) -> None:
    for number, operator in enumerate(draft.operators):
        if operator.kind in ("ADD", "MUL"):
            draft.operators[number] = replace(operator, inputs=operator.inputs[::-1])
    matched(draft, device)


def test_element_wise_constants_may_be_repeated(draft: Draft, device: DeviceNetwork) -> None:
    """To the size of the result; one of the copies nudged is refused."""
    layer = "stage1.res_norm.gain"
    shape = draft.tensors[draft.tensor(layer)].shape
    draft.data(layer, 1, lambda value: np.broadcast_to(value, shape).copy())
    matched(draft, device)
    draft.data(layer, 1, lambda values: one_ulp(values[:, 5:]))
    refused(draft, device, f"ADD '{layer}'")


@pytest.mark.parametrize("axis", range(4))
def test_constants_repeated_beyond_the_result_are_refused(
    draft: Draft, device: DeviceNetwork, axis: int
) -> None:
    """Of the right values, but of a size that the result does not have: it would have another."""
    layer = "stage1.res_norm.gain"
    shape = list(draft.tensors[draft.tensor(layer)].shape)
    shape[axis] += 1
    draft.data(layer, 1, lambda value: np.broadcast_to(value, shape).copy())
    refused(draft, device, f"ADD '{layer}'")


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_a_1x1_convolution_pads_nothing_either_way(
    draft: Draft, device: DeviceNetwork, padding: str
) -> None:
    changed = 0
    for number, operator in enumerate(draft.operators):
        if operator.kind == "CONV_2D" and draft.tensors[operator.inputs[1]].shape[1:3] == (1, 1):
            options = {**operator.options, "padding": padding}
            draft.operators[number] = replace(operator, options=options)
            changed += options != operator.options
    assert changed >= 5
    matched(draft, device)


@pytest.mark.parametrize("norm", ["stem.res_norm", "stage1.res_norm", "stage2.res_norm"])
def test_transposes_around_a_res_norm_match(draft: Draft, device: DeviceNetwork, norm: str) -> None:
    """Its element-wise end in NCHW between transposes, as onnx2tf may."""
    draft.wrap_in_transposes(f"{norm}.gain", f"{norm}.offset", f"{norm}.scaled", norm)
    turned = [operator.kind for operator in draft.operators].count("TRANSPOSE")
    assert turned == 4, "the map, its mean, one over its deviation; and back"
    result, plan = draft.tensor(f"{norm}.nchw"), device.graph.tensors
    assert plan[matched(draft, device)[result]].name == norm


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        ("CONV_2D", "stage1.block1.expand"),
        ("CONV_2D", "stage1.res_norm.mean"),
        ("DEPTHWISE_CONV_2D", "stage1.block1.temporal_conv"),
        ("MAX_POOL_2D", "stage1.pool"),
        ("AVERAGE_POOL_2D", "stage1.block2.mean_identity"),
        ("AVERAGE_POOL_2D", "head.pool"),
    ],
)
def test_a_transposed_window_is_refused(
    draft: Draft, device: DeviceNetwork, kind: str, layer: str
) -> None:
    """TFLite slides windows along axes by place: over frequency and time exchanged is another."""
    number = draft.operator(layer)
    source, *rest = draft.operators[number].inputs
    turned = draft.transpose(source, (0, 2, 1, 3), "turned", number)
    draft.operators[number + 1] = replace(draft.operators[number + 1], inputs=(turned, *rest))
    refused(draft, device, f"{kind} '{layer}' is transposed")


def test_two_orders_in_one_sum_are_refused(draft: Draft, device: DeviceNetwork) -> None:
    number = draft.operator("stage1.block2.sum")
    a, b = draft.operators[number].inputs
    turned = draft.transpose(b, (0, 2, 1, 3), "turned", number)
    draft.operators[number + 1] = replace(draft.operators[number + 1], inputs=(a, turned))
    refused(draft, device, "ADD 'stage1.block2.sum' mixes orders")


def test_an_order_that_is_computed_or_damaged_is_refused(
    draft: Draft, device: DeviceNetwork
) -> None:
    turned = draft.transpose(0, (0, 1, 2, 3), "turned", 0)
    matched(draft, device)
    draft.data("turned", 1, lambda order: np.array([0, 1, 2, 2], np.int32))
    refused(draft, device, "TRANSPOSE 'turned'")
    draft.operators[0] = replace(draft.operators[0], inputs=(0, 0), outputs=(turned,))
    refused(draft, device, "should be a constant")
    of_constant = (draft.tensor("stem.conv/weight"), draft.tensor("turned/order"))
    draft.operators[0] = replace(draft.operators[0], inputs=of_constant)
    refused(draft, device, "TRANSPOSE 'turned'")


def test_an_output_left_transposed_is_refused(draft: Draft, device: DeviceNetwork) -> None:
    end = len(draft.operators)
    draft.outputs = (draft.transpose(draft.outputs[0], (1, 0), "turned", end),)
    refused(draft, device, "returns another tensor: ['turned']")


def as_grouped(draft: Draft, layer: str) -> None:
    """A depthwise convolution written as CONV_2D with one input channel a group."""
    draft.data(layer, 1, lambda w: w.transpose(3, 1, 2, 0))
    options = dict(draft.operators[draft.operator(layer)].options)
    del options["depth_multiplier"]
    draft.change(layer, kind="CONV_2D", options=options)


def test_a_depthwise_written_as_grouped_matches(draft: Draft, device: DeviceNetwork) -> None:
    layers = ["stage1.block1.frequency_conv.band2", "stage2.block1.temporal_conv"]
    for layer in layers:
        as_grouped(draft, layer)
    weight = draft.operators[draft.operator(layers[0])].inputs[1]
    assert draft.tensors[weight].shape == (6, 3, 1, 1)
    matched(draft, device)
    draft.data(layers[1], 1, one_ulp)
    refused(draft, device, f"CONV_2D '{layers[1]}'")


def test_grouped_weights_in_another_order_are_refused(draft: Draft, device: DeviceNetwork) -> None:
    layer = "stage1.block1.frequency_conv.band1"
    as_grouped(draft, layer)
    draft.data(layer, 1, lambda w: w[::-1].copy())
    refused(draft, device, f"CONV_2D '{layer}'")
