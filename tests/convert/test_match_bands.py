"""The proof of an exported graph where sub-bands are cut and joined, however that is written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.convert.drafts import TO_NCHW, Draft, matched, refused
from train.qat import DeviceNetwork

LAYER = "stage1.block2.frequency_conv"
ROWS = f"{LAYER}.rows2"
MASKS = ("begin", "end", "ellipsis", "new_axis", "shrink_axis")


def as_strided(draft: Draft, layer: str, **masks: int) -> None:
    """A slice of begin and size written as STRIDED_SLICE of begin, end and strides."""
    source, begin, size = draft.operators[draft.operator(layer)].inputs
    first, extent = draft.tensors[begin].data, draft.tensors[size].data
    assert first is not None and extent is not None
    end = draft.add(f"{layer}/end", (4,), first + extent)
    strides = draft.add(f"{layer}/strides", (4,), np.ones(4, np.int32))
    options = {f"{name}_mask": masks.get(name, 0) for name in MASKS}
    options["offset"] = bool(masks.get("offset"))
    inputs = (source, begin, end, strides)
    draft.change(layer, kind="STRIDED_SLICE", inputs=inputs, options=options)


def entry(place: int, change: int) -> Callable[[np.ndarray], None]:
    """Change one number of a table."""

    def changed(table: np.ndarray) -> None:
        table.flat[place] += change

    return changed


def test_slices_may_be_strided(draft: Draft, device: DeviceNetwork) -> None:
    for layer in [device.graph.name(o) for o in device.graph.operators if o.kind == "SLICE"]:
        as_strided(draft, layer)
    assert [operator.kind for operator in draft.operators].count("STRIDED_SLICE") == 12
    matched(draft, device)


def test_masks_and_ends_that_mean_the_whole_match(draft: Draft, device: DeviceNetwork) -> None:
    """Bits 0, 2 and 3 are the axes of which all is taken: what stands there is not read."""
    as_strided(draft, ROWS, begin=0b1101, end=0b1101)
    draft.data(ROWS, 1, lambda begin: np.array([7, begin[1], -5, 2], np.int32))
    draft.data(ROWS, 2, lambda end: np.array([-3, end[1], 0, 1], np.int32))
    matched(draft, device)
    last = f"{LAYER}.rows4"
    as_strided(draft, last)
    beyond = np.iinfo(np.int32).max
    draft.data(last, 2, lambda end: np.array([beyond] * 4, np.int32))
    matched(draft, device)


@pytest.mark.parametrize(
    ("place", "change"),
    [
        (1, entry(1, 1)),
        (1, entry(1, -1)),
        (1, entry(2, 1)),
        (2, entry(1, 1)),
        (2, entry(1, -1)),
        (2, entry(3, -1)),
    ],
)
@pytest.mark.parametrize("strided", [False, True])
def test_another_slice_is_refused(
    draft: Draft,
    device: DeviceNetwork,
    strided: bool,
    place: int,
    change: Callable[[np.ndarray], None],
) -> None:
    """Moved by a row, longer or shorter by one, without the first frame or the last channel."""
    if strided:
        as_strided(draft, ROWS)
    draft.data(ROWS, place, change)
    refused(draft, device, f"SLICE '{ROWS}' is no operator")


@pytest.mark.parametrize(
    ("masks", "strides"),
    [
        ({}, [1, 2, 1, 1]),
        ({}, [1, 1, 1, -1]),
        ({"begin": 0b0010}, [1, 1, 1, 1]),
        ({"end": 0b0010}, [1, 1, 1, 1]),
        ({"ellipsis": 0b0001}, [1, 1, 1, 1]),
        ({"new_axis": 0b0001}, [1, 1, 1, 1]),
        ({"shrink_axis": 0b0001}, [1, 1, 1, 1]),
        ({"offset": True}, [1, 1, 1, 1]),
    ],
)
def test_strides_and_masks_that_mean_another_slice_are_refused(
    draft: Draft, device: DeviceNetwork, masks: dict[str, int], strides: list[int]
) -> None:
    as_strided(draft, ROWS, **masks)
    draft.data(ROWS, 3, lambda _: np.array(strides, np.int32))
    refused(draft, device, f"STRIDED_SLICE '{ROWS}' is no operator")


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_strided_slice_of_fewer_axes_is_refused(
    draft: Draft, device: DeviceNetwork, place: int
) -> None:
    as_strided(draft, ROWS)
    draft.data(ROWS, place, lambda table: table[:3].copy())
    refused(draft, device, f"STRIDED_SLICE '{ROWS}' is no operator")


def test_a_slice_of_another_map_is_refused(draft: Draft, device: DeviceNetwork) -> None:
    _, *box = draft.operators[draft.operator(ROWS)].inputs
    padded = draft.tensor("stage1.block1.frequency_conv.padded")
    number = draft.operator("stage1.block1.frequency_conv.rows2")
    other = draft.operators.pop(number)
    draft.change(ROWS, inputs=(padded, *box))
    draft.change("stage1.block1.frequency_conv.band2", inputs=other.inputs)
    refused(draft, device, "DEPTHWISE_CONV_2D 'stage1.block1.frequency_conv.band2'")


@pytest.mark.parametrize(
    "paddings",
    [
        [[0, 0], [2, 0], [0, 0], [0, 0]],
        [[0, 0], [0, 2], [0, 0], [0, 0]],
        [[0, 0], [1, 2], [0, 0], [0, 0]],
        [[0, 0], [0, 0], [1, 1], [0, 0]],
        [[0, 0], [1, 1], [0, 0], [0, 1]],
        [[0, 0], [1, 1], [0, 0]],
    ],
)
def test_another_padding_is_refused(
    draft: Draft, device: DeviceNetwork, paddings: list[list[int]]
) -> None:
    """Both rows on one side, a row more, other axes, too few of them."""
    draft.data(f"{LAYER}.padded", 1, lambda _: np.array(paddings, np.int32))
    refused(draft, device, f"PAD '{LAYER}.padded' is no operator")


@pytest.mark.parametrize("kind", ["PADV2", "MIRROR_PAD"])
def test_padding_by_other_values_is_refused(draft: Draft, device: DeviceNetwork, kind: str) -> None:
    draft.change(f"{LAYER}.padded", kind=kind)
    refused(draft, device, f"{kind} '{LAYER}.padded'")


@pytest.mark.parametrize("order", [(1, 0, 2, 3), (3, 2, 1, 0), (0, 1, 2, 2), (0, 1, 2)])
def test_other_parts_are_refused(
    draft: Draft, device: DeviceNetwork, order: tuple[int, ...]
) -> None:
    """Exchanged, one twice, one left out."""
    parts = draft.operators[draft.operator(LAYER)].inputs
    draft.change(LAYER, inputs=tuple(parts[n] for n in order))
    refused(draft, device, f"CONCATENATION '{LAYER}' is no operator")


@pytest.mark.parametrize("options", [{"axis": 2}, {"axis": -1}, {"fused_activation": "RELU"}])
def test_parts_joined_otherwise_are_refused(
    draft: Draft, device: DeviceNetwork, options: dict[str, int | str]
) -> None:
    draft.option(LAYER, **options)
    refused(draft, device, f"CONCATENATION '{LAYER}' is no operator")


def test_an_axis_counted_from_the_end_matches(draft: Draft, device: DeviceNetwork) -> None:
    draft.option(LAYER, axis=-3)
    matched(draft, device)


@pytest.mark.parametrize(
    ("kind", "layer", "places"),
    [("PAD", f"{LAYER}.padded", [1]), ("SLICE", ROWS, [1, 2])],
)
def test_a_place_is_transposed_with_its_map(
    draft: Draft, device: DeviceNetwork, kind: str, layer: str, places: list[int]
) -> None:
    """Between transposes a table in NCHW matches, left in NHWC it does not."""
    draft.wrap_in_transposes(layer)
    inner = f"{layer}.nchw"
    for place in places:
        refused(draft, device, f"{kind} '{inner}' is no operator")
        draft.data(inner, place, lambda table: table[list(TO_NCHW)])
    matched(draft, device)


def test_a_strided_slice_is_transposed_with_its_map(draft: Draft, device: DeviceNetwork) -> None:
    as_strided(draft, ROWS, begin=0b0101, end=0b1101)
    draft.wrap_in_transposes(ROWS)
    inner = f"{ROWS}.nchw"
    refused(draft, device, f"STRIDED_SLICE '{inner}' is no operator")
    for place in (1, 2):
        draft.data(inner, place, lambda table: table[list(TO_NCHW)])
    draft.option(inner, begin_mask=0b1001, end_mask=0b1011)
    matched(draft, device)


def test_an_axis_is_transposed_with_its_parts(draft: Draft, device: DeviceNetwork) -> None:
    draft.wrap_in_transposes(LAYER)
    refused(draft, device, f"CONCATENATION '{LAYER}.nchw' is no operator")
    draft.option(f"{LAYER}.nchw", axis=2)
    matched(draft, device)


def test_a_convolution_without_its_bias_is_refused(draft: Draft, device: DeviceNetwork) -> None:
    """-1 marks an absent input; it is also Python's index of the last tensor."""
    place = draft.operator("classifier")
    *rest, bias = draft.operators[place].inputs
    draft.tensors.append(draft.tensors[bias])
    draft.change("classifier", inputs=(*rest, -1))
    refused(draft, device, "CONV_2D 'classifier' is no operator")
