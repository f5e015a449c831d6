"""From the QAT network to ONNX: the float form of the device graph, one node an operator."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch
from onnx import helper

from firmware_ref.lowering import INPUT_NAME, OUTPUT_NAME
from train.qat import DeviceNetwork

OPSET = 17


def export_onnx(device: DeviceNetwork, path: Path) -> None:
    """Write ``device`` in float, batch 1, NCHW, as an ONNX file that passes the checker."""
    network = DeviceNetwork(device.graph, device.float_constants()).eval()
    _, bands, frames, channels = device.graph.tensors[device.graph.inputs[0]].shape
    example = torch.zeros(1, channels, bands, frames)
    with warnings.catch_warnings():
        # torch announces the end of the exporter that needs no further packages.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)
        torch.onnx.export(
            network,
            (example,),
            str(path),
            dynamo=False,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            opset_version=OPSET,
        )
    model = onnx.load(path)
    _padding_into_convolutions(model.graph)
    for node in model.graph.node:
        # A name that starts with a slash is no TensorFlow name.
        node.name = node.name.strip("/").replace("/", "_")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _padding_into_convolutions(graph: onnx.GraphProto) -> None:
    """Say ``auto_pad=SAME_UPPER`` where torch, which cannot, padded before a convolution.

    SAME_UPPER puts the odd zero at the end, as TFLite's SAME and `train.model.same_padding` do.
    """
    producers = {output: node for node in graph.node for output in node.output}
    for node in list(graph.node):
        pad = producers.get(node.input[0]) if node.op_type == "Conv" else None
        if pad is None or pad.op_type != "Pad":
            continue
        node.input[0] = pad.input[0]
        kept = [a for a in node.attribute if a.name not in ("pads", "auto_pad")]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("auto_pad", "SAME_UPPER")])
        graph.node.remove(pad)
    _remove_unused(graph)


def _remove_unused(graph: onnx.GraphProto) -> None:
    """Drop nodes whose results nobody reads (the pads' own arithmetic)."""
    while True:
        used = {name for node in graph.node for name in node.input}
        used |= {output.name for output in graph.output}
        dead = [node for node in graph.node if not used & set(node.output)]
        if not dead:
            return
        for node in dead:
            graph.node.remove(node)
