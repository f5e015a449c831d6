"""ONNX to a float flatbuffer by onnx2tf, in a process and a folder of its own, offline."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from firmware_ref.errors import InputError

# onnx2tf fetches this file of sample images from the network, even where it will not calibrate,
# unless the working directory has it. Any numbers serve: nothing here calibrates.
SAMPLE_FILE = "calibration_image_sample_data_20x128x128x3_float32.npy"
SAMPLE_SHAPE = (20, 128, 128, 3)
TIMEOUT_SECONDS = 600


def convert_float(onnx_file: Path, folder: Path) -> Path:
    """Convert inside ``folder``; returns the path of the float32 ``.tflite``.

    Raises `InputError` with the converter's last words where it fails.
    """
    options = ("--copy_onnx_input_output_names_to_tflite",)
    return run_onnx2tf(onnx_file, folder, "float32", options)


def run_onnx2tf(onnx_file: Path, folder: Path, kind: str, options: Sequence[str]) -> Path:
    """Run onnx2tf inside ``folder``; returns the path of the ``.tflite`` of this ``kind``.

    A process of its own keeps TensorFlow's start-up messages, memory and working directory
    apart. Raises `InputError` with the converter's last words where it fails.
    """
    np.save(folder / SAMPLE_FILE, np.zeros(SAMPLE_SHAPE, np.float32))
    output = folder / "onnx2tf"
    command = [sys.executable, "-m", "onnx2tf", "-i", str(onnx_file), "-o", str(output)]
    command += [*options, "--non_verbose"]
    # onnx2tf calls onnxsim by name: it stands beside the interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {
        **os.environ,
        "PATH": path,
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"onnx2tf took over {TIMEOUT_SECONDS} s; run again on an idle machine"
        ) from None
    result = output / f"{onnx_file.stem}_{kind}.tflite"
    if done.returncode or not result.is_file():
        words = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise InputError(
            f"onnx2tf failed with exit code {done.returncode}: {words}; "
            "is the environment the pinned one (pip install 'tinyscene[convert]')?"
        )
    return result
