"""The conversion that one writes first, to measure this kit's beside it: onnx2tf as it comes."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convert.float_flatbuffer import run_onnx2tf
from convert.onnx_export import OPSET
from firmware_ref.arch import Network
from train.model import ResNorm, build_model

CALIBRATION_INPUTS = 32
KIND = "full_integer_quant"
INPUT = "input"


def convert_stock(network: Network) -> bytes:
    """A full INT8 flatbuffer of the float network, exported as it was trained.

    TensorFlow folds batch norm and calibrates on `CALIBRATION_INPUTS` inputs. Weights and inputs
    are drawn: what the model costs depends on neither, what it computes is of no use.
    """
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    model = build_model(network).eval()
    for name, module in list(model.named_modules()):
        if isinstance(module, ResNorm):
            model.set_submodule(name, Equations(network))
    bands, frames, channels = network.input_bands, network.input_frames, network.input_channels
    with tempfile.TemporaryDirectory(prefix="tinyscene-") as name:
        folder = Path(name)
        with warnings.catch_warnings():
            # torch announces the end of the exporter that needs no further packages.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", "Constant folding", UserWarning)
            torch.onnx.export(
                model,
                (torch.zeros(1, channels, bands, frames),),
                str(folder / "model.onnx"),
                dynamo=False,
                input_names=[INPUT],
                opset_version=OPSET,
            )
        shape = (CALIBRATION_INPUTS, bands, frames, channels)
        np.save(folder / "inputs.npy", rng.standard_normal(shape).astype(np.float32))
        mean, std = ([[[[value] * channels]]] for value in (0.0, 1.0))
        options = ["-oiqt", "-cind", INPUT, "inputs.npy", str(mean), str(std)]
        return run_onnx2tf(folder / "model.onnx", folder, KIND, options).read_bytes()


class Equations(ResNorm):
    """ResNorm as the report writes it: exported without the transposes of a layer norm."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=(1, 3), keepdim=True, correction=0)  # (B, 1, F, 1)
        return self.identity_weight * x + (x - mean) * torch.rsqrt(variance + self.epsilon)
