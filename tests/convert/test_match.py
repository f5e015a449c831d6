"""The proof of an exported graph: it accepts what a converter may do and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import tflite_runtime.interpreter as tflite_runtime
import torch

from convert.flatbuffer import write
from convert.match import MismatchError, match
from firmware_ref.graph import Graph, Operator, Tensor
from tests.convert.members import REPORT, SMALL, Converted, device_network, examples
from train import qat_checkpoint
from train.qat import DeviceNetwork

TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


@dataclass
class Draft:
    """A graph that can be changed; tensors and operators are found by layer name."""

    tensors: list[Tensor]
    operators: list[Operator]
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, device: DeviceNetwork) -> Draft:
        """The plan in float, its constants in it, as a converter that changes nothing gives it."""
        constants = device.float_constants()
        tensors = [as_float(t, constants.get(t.name)) for t in device.graph.tensors]
        return cls(tensors, list(device.graph.operators), device.graph.outputs)

    def graph(self) -> Graph:
        return Graph(tuple(self.tensors), tuple(self.operators), (0,), self.outputs)

    def tensor(self, name: str) -> int:
        (found,) = (index for index, t in enumerate(self.tensors) if t.name == name)
        return found

    def operator(self, layer: str) -> int:
        (found,) = (
            n for n, o in enumerate(self.operators) if self.tensors[o.outputs[0]].name == layer
        )
        return found

    def add(self, name: str, shape: tuple[int, ...], data: np.ndarray | None = None) -> int:
        dtype = "float32" if data is None else str(data.dtype)
        self.tensors.append(Tensor(name, shape, dtype, None, data))
        return len(self.tensors) - 1

    def change(self, layer: str, **fields: Any) -> None:
        number = self.operator(layer)
        self.operators[number] = replace(self.operators[number], **fields)

    def option(self, layer: str, **options: Any) -> None:
        old = self.operators[self.operator(layer)].options
        assert set(options) <= set(old)
        self.change(layer, options={**old, **options})

    def data(self, name: str, change: Callable[[np.ndarray], Any]) -> None:
        """Change a constant's array; in place, or by returning another."""
        index = self.tensor(name)
        old = self.tensors[index].data
        assert old is not None
        new = old.copy()
        result = change(new)
        new = new if result is None else result
        self.tensors[index] = replace(self.tensors[index], data=new, shape=new.shape)

    def transpose(self, source: int, order: tuple[int, ...], name: str, at: int) -> int:
        """Insert a TRANSPOSE before operator ``at``; returns its output."""
        shape = tuple(self.tensors[source].shape[axis] for axis in order)
        output = self.add(name, shape)
        table = self.add(f"{name}/order", (len(order),), np.array(order, np.int32))
        self.operators.insert(at, Operator("TRANSPOSE", (source, table), (output,)))
        return output


def as_float(tensor: Tensor, constant: np.ndarray | None) -> Tensor:
    if constant is not None:
        return replace(tensor, dtype="float32", data=constant)
    if tensor.data is None:
        return replace(tensor, dtype="float32")
    if tensor.quantization is None:
        return tensor  # axes and shapes
    (scale,) = tensor.quantization.scale
    data = np.float32(scale) * tensor.data.astype(np.float32)
    return replace(tensor, dtype="float32", quantization=None, data=data)


@pytest.fixture(scope="module")
def device() -> DeviceNetwork:
    return device_network(SMALL)


@pytest.fixture
def draft(device: DeviceNetwork) -> Draft:
    return Draft.of(device)


def matched(draft: Draft, device: DeviceNetwork) -> dict[int, int]:
    return match(draft.graph(), device.graph, device.float_constants())


def refused(draft: Draft, device: DeviceNetwork, words: str) -> None:
    with pytest.raises(MismatchError) as caught:
        matched(draft, device)
    assert words in str(caught.value)


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
    """One bit of one constant of one operator, in turn for every constant that was exported."""
    _, device = qat_checkpoint.load(small.checkpoint)
    exported, constants = small.exported, device.float_constants()
    floats = [
        (n, t.data) for n, t in enumerate(exported.tensors) if t.data is not None and t.data.ndim
    ]
    used = {index for operator in exported.operators for index in operator.inputs}
    tried = 0
    for index, old in floats:
        if old.dtype != np.float32 or index not in used:
            continue
        data = old.copy()
        data.flat[-1] = np.nextafter(data.flat[-1], np.float32(np.inf))
        tensors = list(exported.tensors)
        tensors[index] = replace(tensors[index], data=data)
        with pytest.raises(MismatchError):
            match(replace(exported, tensors=tuple(tensors)), device.graph, constants)
        tried += 1
    assert tried >= len(constants)


def one_ulp(array: np.ndarray) -> None:
    array.flat[3 % array.size] = np.nextafter(array.flat[3 % array.size], np.float32(9))


# Each is one change to the exported graph, and the operator that the refusal has to name.
CHANGES: dict[str, tuple[Callable[[Draft], None], str]] = {
    "a weight, by one ulp": (lambda d: d.data("stem.conv/weight", one_ulp), "CONV_2D 'stem.conv'"),
    "a bias, by one ulp": (
        lambda d: d.data("stage1.block2.temporal_conv/bias", one_ulp),
        "DEPTHWISE_CONV_2D 'stage1.block2.temporal_conv'",
    ),
    "a factor, by one ulp": (
        lambda d: d.data("stage2.block1.ssn_scale/weight", one_ulp),
        "MUL 'stage2.block1.ssn_scale'",
    ),
    "a summand, by one ulp": (
        lambda d: d.data("stage1.block1.sub_spectral_norm/bias", one_ulp),
        "ADD 'stage1.block1.sub_spectral_norm'",
    ),
    "lambda, by one ulp": (
        lambda d: d.data("res_norm.lambda", one_ulp),
        "ADD 'stem.res_norm.gain'",
    ),
    "a kernel upside down": (
        lambda d: d.data("stage1.block1.frequency_conv/weight", lambda w: w[:, ::-1]),
        "DEPTHWISE_CONV_2D 'stage1.block1.frequency_conv'",
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
    "a dilation": (
        lambda d: d.option("stage1.block2.frequency_conv", dilation_h_factor=2),
        "DEPTHWISE_CONV_2D 'stage1.block2.frequency_conv'",
    ),
    "an activation added": (
        lambda d: d.option("stage1.block2.broadcast_sum", fused_activation="RELU"),
        "ADD 'stage1.block2.broadcast_sum'",
    ),
    "an activation dropped": (
        lambda d: d.option("stage1.block2.sum", fused_activation="NONE"),
        "ADD 'stage1.block2.sum'",
    ),
    "an activation exchanged": (
        lambda d: d.option("stage1.block1.expand", fused_activation="RELU6"),
        "CONV_2D 'stage1.block1.expand'",
    ),
    "the operands of SUB exchanged": (
        lambda d: d.change(
            "stem.res_norm.centered",
            inputs=d.operators[d.operator("stem.res_norm.centered")].inputs[::-1],
        ),
        "SUB 'stem.res_norm.centered'",
    ),
    "an operand of another layer": (
        lambda d: d.change(
            "stage1.block2.sum",
            inputs=(d.tensor("stage1.block2.broadcast_sum"), d.tensor("stem.conv")),
        ),
        "ADD 'stage1.block2.sum'",
    ),
    "another kind": (
        lambda d: d.change("stage2.block1.sigmoid", kind="TANH"),
        "TANH 'stage2.block1.sigmoid'",
    ),
    "an axis": (
        lambda d: d.data("stage1.res_norm.variance/axes", lambda a: np.array([1, 3], np.int32)),
        "MEAN 'stage1.res_norm.variance'",
    ),
    "an axis less": (
        lambda d: d.data("stage1.block1.mean/axes", lambda a: np.array([], np.int32)),
        "MEAN 'stage1.block1.mean'",
    ),
    "dimensions dropped by a mean": (
        lambda d: d.option("head.pool", keep_dims=False),
        "MEAN 'head.pool'",
    ),
    "another shape than the operator's": (
        lambda d: d.tensors.__setitem__(
            d.tensor("stage2.block1.project"),
            replace(d.tensors[d.tensor("stage2.block1.project")], shape=(1, 1, 10, 11)),
        ),
        "CONV_2D 'stage2.block1.project' has shape (1, 1, 10, 11)",
    ),
    "an operator left out": (
        lambda d: (
            d.operators.pop(d.operator("stage1.res_norm.square")),
            d.change(
                "stage1.res_norm.variance",
                inputs=(
                    d.tensor("stage1.res_norm.centered"),
                    d.tensor("stage1.res_norm.variance/axes"),
                ),
            ),
        )[0],
        "MEAN 'stage1.res_norm.variance'",
    ),
    "the last operator left out": (
        lambda d: (
            d.operators.pop(),
            setattr(d, "outputs", (d.tensor("head.pool"),)),
        )[1],
        "lacks 'logits'",
    ),
    "an operator twice": (
        lambda d: d.operators.insert(
            3,
            replace(d.operators[2], outputs=(d.add("copy", d.tensors[d.operators[2].outputs[0]].shape),)),
        ),
        "'copy'",
    ),
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


def test_grouped_weights_in_another_order_are_refused(
    draft: Draft, device: DeviceNetwork
) -> None:
    layer = "stage1.block1.frequency_conv"
    as_grouped(draft, layer)
    draft.data(f"{layer}/weight", lambda w: w[::-1].copy())
    refused(draft, device, f"CONV_2D '{layer}'")
