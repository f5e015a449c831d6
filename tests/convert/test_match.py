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

TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


def test_the_plan_matches_itself(draft: Draft, device: DeviceNetwork) -> None:
    found = matched(draft, device)
    written = [operator.outputs[0] for operator in device.graph.operators]
    assert found == {index: index for index in [0, *written]}


def test_other_names_and_another_order_match(draft: Draft, device: DeviceNetwork) -> None:
    """Names are of no account; nor is the order in which operators of two branches run."""
    draft.tensors = [replace(t, name=f"arith.{n}") for n, t in enumerate(draft.tensors)]
    names = [device.graph.name(operator) for operator in device.graph.operators]
    mean, square = names.index("stage1.res_norm.offset"), names.index("stage1.res_norm.square")
    draft.operators.insert(square, draft.operators.pop(mean))
    assert len(matched(draft, device)) == len(names) + 1


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
    layer = "stage2.block1.ssn_scale"
    shape = draft.tensors[draft.tensor(layer)].shape
    draft.data(f"{layer}/weight", lambda w: np.broadcast_to(w, shape).copy())
    matched(draft, device)
    draft.data(f"{layer}/weight", lambda w: one_ulp(w[:, :, 5:]))
    refused(draft, device, f"MUL '{layer}'")


def wrap_in_transposes(draft: Draft, layer: str) -> None:
    """Compute a residual normalisation in NCHW between two transposes, as onnx2tf may."""
    inside = [
        n
        for n, operator in enumerate(draft.operators)
        if draft.tensors[operator.outputs[0]].name.startswith(layer)
    ]
    first, last = inside[0], inside[-1]
    source = draft.operators[first].inputs[0]
    result = draft.operators[last].outputs[0]
    for number in inside:
        operator = draft.operators[number]
        output = operator.outputs[0]
        shape = tuple(draft.tensors[output].shape[axis] for axis in TO_NCHW)
        if output == result:
            output = draft.add(f"{layer}.nchw", shape)
            draft.operators[number] = replace(operator, outputs=(output,))
        draft.tensors[output] = replace(draft.tensors[output], shape=shape)
        if operator.kind == "MEAN":
            name = draft.tensors[operator.inputs[1]].name
            draft.data(name, lambda axes: np.array([TO_NCHW.index(a) for a in axes], np.int32))
    at_end = draft.operators[last].outputs[0]
    draft.transpose(at_end, TO_NHWC, f"{layer}.back", last + 1)
    draft.operators[last + 1] = replace(draft.operators[last + 1], outputs=(result,))
    there = draft.transpose(source, TO_NCHW, f"{layer}.there", first)
    for number in range(first + 1, last + 2):
        operator = draft.operators[number]
        inputs = tuple(there if index == source else index for index in operator.inputs)
        draft.operators[number] = replace(operator, inputs=inputs)


@pytest.mark.parametrize("layer", ["stem.res_norm", "stage1.res_norm", "stage2.res_norm"])
def test_transposes_around_a_res_norm_match(
    draft: Draft, device: DeviceNetwork, layer: str
) -> None:
    wrap_in_transposes(draft, layer)
    assert draft.operators[draft.operator(f"{layer}.there")].kind == "TRANSPOSE"
    result, plan = draft.tensor(f"{layer}.nchw"), device.graph.tensors
    assert plan[matched(draft, device)[result]].name == layer


def test_an_axis_left_untransposed_is_refused(draft: Draft, device: DeviceNetwork) -> None:
    wrap_in_transposes(draft, "stage1.res_norm")
    draft.data("stage1.res_norm.mean/axes", lambda axes: np.array([2, 3], np.int32))
    refused(draft, device, "MEAN 'stage1.res_norm.mean'")


def test_a_factor_is_transposed_with_its_operand(draft: Draft, device: DeviceNetwork) -> None:
    """MUL between transposes: its constant in NCHW matches, left in NHWC it does not."""
    layer = "stage1.block1.ssn_scale"
    number = draft.operator(layer)
    source, constant = draft.operators[number].inputs
    result = draft.operators[number].outputs[0]
    there = draft.transpose(source, TO_NCHW, "there", number)
    inner = draft.add("inner", draft.tensors[there].shape)
    draft.operators[number + 1] = replace(
        draft.operators[number + 1], inputs=(there, constant), outputs=(inner,)
    )
    draft.transpose(inner, TO_NHWC, "back", number + 2)
    draft.operators[number + 2] = replace(draft.operators[number + 2], outputs=(result,))
    refused(draft, device, "MUL 'inner'")
    draft.data(f"{layer}/weight", lambda w: w.transpose(TO_NCHW))
    matched(draft, device)


def test_a_transposed_convolution_is_refused(draft: Draft, device: DeviceNetwork) -> None:
    """TFLite convolves axes by place: fed with frequency and time exchanged it is another."""
    number = draft.operator("stage1.block1.expand")
    source, *rest = draft.operators[number].inputs
    turned = draft.transpose(source, (0, 2, 1, 3), "turned", number)
    draft.operators[number + 1] = replace(draft.operators[number + 1], inputs=(turned, *rest))
    refused(draft, device, "CONV_2D 'stage1.block1.expand' is transposed")


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
    draft.data("turned/order", lambda order: np.array([0, 1, 2, 2], np.int32))
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
    draft.data(f"{layer}/weight", lambda w: w.transpose(3, 1, 2, 0))
    options = dict(draft.operators[draft.operator(layer)].options)
    del options["depth_multiplier"]
    draft.change(layer, kind="CONV_2D", options=options)


def test_a_depthwise_written_as_grouped_matches(draft: Draft, device: DeviceNetwork) -> None:
    layers = ["stage1.block1.frequency_conv", "stage2.block1.temporal_conv"]
    for layer in layers:
        as_grouped(draft, layer)
    assert draft.tensors[draft.tensor(f"{layers[0]}/weight")].shape == (6, 3, 1, 1)
    matched(draft, device)
    draft.data(f"{layers[1]}/weight", one_ulp)
    refused(draft, device, f"CONV_2D '{layers[1]}'")


def test_grouped_weights_in_another_order_are_refused(draft: Draft, device: DeviceNetwork) -> None:
    layer = "stage1.block1.frequency_conv"
    as_grouped(draft, layer)
    draft.data(f"{layer}/weight", lambda w: w[::-1].copy())
    refused(draft, device, f"CONV_2D '{layer}'")
