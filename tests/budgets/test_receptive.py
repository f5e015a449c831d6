"""Receptive fields by hand, and against the support of the float network's gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from budgets.count import count_network
from budgets.deployed import deployed_graph
from budgets.receptive import Field, receptive_fields, sound_milliseconds
from firmware_ref.arch import preset
from firmware_ref.errors import InputError
from firmware_ref.features import FeatureDefinition, stack_deltas
from firmware_ref.graph import Tensor
from tests.budgets.conftest import GraphBuilder

MAP = (1, 64, 32, 4)


@pytest.fixture
def grown(builder: GraphBuilder) -> GraphBuilder:
    """A graph whose input is a map of 64 bands and 32 frames."""
    builder.add(Tensor("input", MAP, "int8"))
    return builder


def last(builder: GraphBuilder) -> Field:
    return receptive_fields(builder.build())[-1]


def conv(
    builder: GraphBuilder, x: int, kernel: tuple[int, int], stride: int = 1, dilation: int = 1
) -> int:
    """A convolution with SAME padding that keeps the channels."""
    _, bands, frames, channels = builder.tensors[x].shape
    shape = (1, -(-bands // stride), -(-frames // stride), channels)
    options = {"stride_h": stride, "stride_w": stride}
    options |= {"dilation_h_factor": dilation, "dilation_w_factor": dilation}
    inputs = (x, builder.constant((channels, *kernel, channels)))
    return builder.op("CONV_2D", f"conv{len(builder.operators)}", inputs, shape, **options)


def test_convolutions_in_a_row(grown: GraphBuilder) -> None:
    """5 x 3 of stride 2; 3 x 1 over every second value: 5 + 2 * 2; then 1 x 3: 3 + 2 * 2."""
    x = conv(grown, 0, (5, 3), stride=2)
    assert last(grown) == Field(5, 3, (2, 2))
    x = conv(grown, x, (3, 1))
    assert last(grown) == Field(9, 3, (2, 2))
    conv(grown, x, (1, 3))
    assert last(grown) == Field(9, 7, (2, 2))


def test_strides_multiply(grown: GraphBuilder) -> None:
    x = conv(grown, conv(grown, 0, (1, 1), stride=2), (3, 3), stride=2)
    assert last(grown) == Field(5, 5, (4, 4))
    conv(grown, x, (3, 1))
    assert last(grown) == Field(13, 5, (4, 4))


def test_dilation_spreads_the_taps(grown: GraphBuilder) -> None:
    """Three taps, four apart, reach over nine values."""
    conv(grown, 0, (3, 1), dilation=4)
    assert last(grown) == Field(9, 1)


def test_depthwise_weights_have_the_taps_in_the_same_places(grown: GraphBuilder) -> None:
    grown.op("DEPTHWISE_CONV_2D", "y", (0, grown.constant((1, 3, 5, 4))), MAP, stride_h=1)
    assert last(grown) == Field(3, 5)


def test_pools_see_their_windows(grown: GraphBuilder) -> None:
    window = {"filter_height": 4, "filter_width": 2, "stride_h": 3, "stride_w": 2}
    x = grown.op("MAX_POOL_2D", "pool", (0,), (1, 21, 16, 4), **window)
    assert last(grown) == Field(4, 2, (3, 2))
    conv(grown, x, (3, 3))
    assert last(grown) == Field(4 + 2 * 3, 2 + 2 * 2, (3, 2))


def test_a_mean_sees_the_whole_axis_and_leaves_the_other(grown: GraphBuilder) -> None:
    x = conv(grown, 0, (5, 3), stride=2)
    grown.op("MEAN", "mean", (x,), (1, 1, 16, 4))
    assert last(grown) == Field(64, 3, (2, 2))


def test_what_broadcasts_over_an_axis_does_not_count_on_it(grown: GraphBuilder) -> None:
    """Frequency path 3 x 1, temporal path 1 x 5 over the mean; their sum has 3 bands, 5 frames."""
    y = conv(grown, 0, (3, 1))
    mean = grown.op("MEAN", "mean", (y,), (1, 1, 32, 4))
    z = grown.op("DEPTHWISE_CONV_2D", "z", (mean, grown.constant((1, 1, 5, 4))), (1, 1, 32, 4))
    assert last(grown) == Field(64, 5)
    grown.op("ADD", "sum", (z, y), MAP)
    assert last(grown) == Field(3, 5)


def test_two_maps_give_the_wider_field(grown: GraphBuilder) -> None:
    a, b = conv(grown, 0, (7, 1)), conv(grown, 0, (1, 3))
    grown.op("ADD", "sum", (a, b), MAP)
    assert last(grown) == Field(7, 3)


def test_copies_keep_the_field(grown: GraphBuilder) -> None:
    """Padded, cut in two, convolved apart and joined: three bands, as before."""
    padded = grown.op("PAD", "padded", (0, grown.constant((4, 2), "int32")), (1, 66, 32, 4))
    halves = []
    for number in (1, 2):
        integers = grown.constant((4,), "int32"), grown.constant((4,), "int32")
        cut = grown.op("SLICE", f"rows{number}", (padded, *integers), (1, 34, 32, 4))
        assert last(grown) == Field(1, 1)
        weights = grown.constant((1, 3, 1, 4))
        halves.append(grown.op("DEPTHWISE_CONV_2D", f"y{number}", (cut, weights), (1, 32, 32, 4)))
    grown.op("CONCATENATION", "y", tuple(halves), MAP)
    assert last(grown) == Field(3, 1)


@pytest.mark.parametrize("kind", ["GATHER", "SLICE", "SPLIT", "SPLIT_V", "STRIDED_SLICE"])
def test_one_frame_cut_out_is_no_mean(grown: GraphBuilder, kind: str) -> None:
    x = conv(grown, 0, (3, 3))
    grown.op(kind, "frame", (x,), (1, 64, 1, 4))
    assert last(grown) == Field(3, 3)


@pytest.mark.parametrize(
    ("size", "step"), [((32, 8), (2, 4)), ((64, 32), (1, 1)), ((40, 9), (2, 4))]
)
def test_a_map_resized_by_its_nearest_values(
    grown: GraphBuilder, size: tuple[int, int], step: tuple[int, int]
) -> None:
    """What it leaves out is stepped over by three taps after it."""
    x = grown.op(
        "RESIZE_NEAREST_NEIGHBOR", "small", (0, grown.constant((2,), "int32")), (1, *size, 4)
    )
    assert last(grown) == Field(1, 1, step)
    conv(grown, x, (3, 3))
    assert last(grown) == Field(1 + 2 * step[0], 1 + 2 * step[1], step)


def test_after_an_enlarged_map_the_field_is_an_upper_bound(grown: GraphBuilder) -> None:
    """Three values of a map twice as large are two of the input at most, and counted as three."""
    x = grown.op("RESIZE_NEAREST_NEIGHBOR", "large", (0,), (1, 128, 64, 4))
    conv(grown, x, (3, 3))
    assert last(grown) == Field(3, 3)


def test_flattened_or_fully_connected_sees_everything(grown: GraphBuilder) -> None:
    x = conv(grown, 0, (3, 3))
    flat = grown.op("RESHAPE", "flat", (x,), (1, 64 * 32 * 4))
    assert last(grown) == Field(64, 32)
    grown.op("FULLY_CONNECTED", "dense", (flat, grown.constant((10, 64 * 32 * 4))), (1, 10))
    assert last(grown) == Field(64, 32)


def test_nothing_sees_more_than_the_input(grown: GraphBuilder) -> None:
    x = 0
    for _ in range(5):
        x = conv(grown, x, (31, 31), stride=2)
    assert last(grown) == Field(64, 32, (32, 32))


def test_options_no_kernel_has_do_no_harm(grown: GraphBuilder) -> None:
    """Of a damaged file: sizes below nothing and beyond anything."""
    odd = {"filter_height": -3, "filter_width": 2**31, "stride_h": -7, "stride_w": 2**31}
    x = grown.op("MAX_POOL_2D", "pool", (0,), MAP, **odd)
    assert last(grown) == Field(1, 32, (1, 32))
    conv(grown, x, (1, 3))
    assert last(grown) == Field(1, 32, (1, 32))


def test_a_convolution_without_weights_is_refused(grown: GraphBuilder) -> None:
    grown.op("CONV_2D", "y", (0,), MAP)
    with pytest.raises(InputError, match="CONV_2D 'y' has no input 1"):
        receptive_fields(grown.build())


# The main path of the preset: narrow, without statistics, on an input no field reaches the end of.
WIDE = dataclasses.replace(
    preset("report-125k"),
    stem_channels=3,
    widths=(3, 3, 4, 5),
    head_channels=6,
    res_norm=False,
    input_bands=512,
    input_frames=256,
)


@pytest.fixture(scope="module")
def fields() -> dict[str, Field]:
    """Of the device graph of `WIDE`, by layer."""
    graph = deployed_graph(WIDE)
    found = receptive_fields(graph)
    return {graph.name(op): field for op, field in zip(graph.operators, found, strict=True)}


def supports(axis: int) -> Iterator[tuple[str, int]]:
    """Layer, and how many bands or frames of the input have a gradient from its middle value.

    With weights and inputs above zero no ReLU hides a value, and a mean in place of the largest
    none of a pool's. For bands the temporal path is cut: all of it is a mean over bands.
    """
    torch = pytest.importorskip("torch")
    build_model = pytest.importorskip("train.model").build_model
    model = build_model(WIDE).double().eval()
    values = {}
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.0)
    for stage in model.stages:
        if hasattr(stage, "pool"):
            stage.pool = torch.nn.AvgPool2d(2)
    for name, module in model.named_modules():
        if axis == 2 and name.endswith("temporal_conv"):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))
        name = f"{name}.sum" if name.rpartition(".")[2].startswith("block") else name
        module.register_forward_hook(lambda _, inputs, y, name=name: values.update({name: y}))
    x = torch.rand(1, 3, WIDE.input_bands, WIDE.input_frames, dtype=torch.double).requires_grad_()
    with torch.enable_grad():
        model(x)
        layers = {row.name for row in count_network(WIDE).on_device.layers}
        for name in values.keys() & layers:
            value = values[name]
            if value.ndim != 4 or (axis == 2 and value.shape[2] == 1) or name == "classifier":
                continue
            middle = value[0, :, value.shape[2] // 2, value.shape[3] // 2].sum()
            (gradient,) = torch.autograd.grad(middle, x, retain_graph=True)
            seen = np.flatnonzero(gradient.abs().amax(dim=(0, 1, 5 - axis)).numpy())
            assert len(seen) == seen[-1] - seen[0] + 1
            yield name, len(seen)


@pytest.mark.parametrize(("axis", "size"), [(2, WIDE.input_bands), (3, WIDE.input_frames)])
def test_gradients_reach_as_far(fields: dict[str, Field], axis: int, size: int) -> None:
    measured = dict(supports(axis))
    assert len(measured) >= 22 and max(measured.values()) < size
    assert measured == {name: fields[name].extent[axis - 2] for name in measured}


def test_the_preset_sees_the_same_up_to_its_input(fields: dict[str, Field]) -> None:
    network = preset("report-125k")
    rows = {row.name: row for row in count_network(network).on_device.layers}
    assert len(fields.keys() & rows.keys()) > 60
    for name in fields.keys() & rows.keys():
        seen = rows[name].receptive_bands, rows[name].receptive_frames
        wanted = min(fields[name].bands, 128), min(fields[name].frames, 44)
        if rows[name].output_shape[1] > 1:
            assert seen == wanted, name
        else:
            assert seen[1] == wanted[1], name
    assert (rows["head.conv"].receptive_bands, rows["head.conv"].receptive_frames) == (123, 44)


@pytest.mark.parametrize(
    ("frames", "channels", "milliseconds"),
    [
        # One window of 2,048 samples at 44.1 kHz; each frame more is a hop of 1,024.
        (1, 1, 1000 * 2048 / 44_100),
        (5, 1, 1000 * (4 * 1024 + 2048) / 44_100),
        # A delta of a delta reaches four frames to either side.
        (1, 3, 1000 * (8 * 1024 + 2048) / 44_100),
        (5, 3, 1000 * (12 * 1024 + 2048) / 44_100),
        # No more than the clip.
        (44, 1, 1000.0),
        (40, 3, 1000.0),
    ],
)
def test_milliseconds_by_hand(frames: int, channels: int, milliseconds: float) -> None:
    found = sound_milliseconds(Field(9, frames), (1, 128, 44, channels))
    assert found == pytest.approx(milliseconds, rel=1e-12)


OTHERS = [
    *((1, 128, 43, 3), (1, 64, 44, 3), (2, 128, 44, 3), (1, 128, 44, 2), (1, 128, 44)),
    *((1, 128, 44, 3, 1), (128,), ()),
]


@pytest.mark.parametrize("shape", OTHERS)
def test_other_inputs_are_no_sound(shape: tuple[int, ...]) -> None:
    assert sound_milliseconds(Field(1, 1), shape) is None


def test_a_delta_of_a_delta_reaches_four_frames(rng: np.random.Generator) -> None:
    """Of the extractor: which frames of log-mels change one frame of its third channel."""

    assert FeatureDefinition().frames == 44
    log_mels = rng.normal(size=(128, 44)).astype(np.float32)
    still = stack_deltas(log_mels)[..., 22, 2]
    moved = []
    for frame in range(44):
        nudged = log_mels.copy()
        nudged[:, frame] += 1
        moved.append(not np.array_equal(stack_deltas(nudged)[..., 22, 2], still))
    assert np.flatnonzero(moved).tolist() == [18, 19, 20, 21, 22, 23, 24, 25, 26]
