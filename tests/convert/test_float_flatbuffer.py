"""onnx2tf in a process of its own: no network, and no failure without a plain word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert import float_flatbuffer
from convert.float_flatbuffer import convert_float
from firmware_ref.errors import InputError
from tests.convert.members import Converted


def test_conversion_needs_no_network(report: Converted, small: Converted, network_log: Path) -> None:
    lines = network_log.read_text().splitlines()
    assert [line for line in lines if line.startswith("attempt")] == []
    runs = [line for line in lines if line.startswith("closed in") and "-m onnx2tf" in line]
    assert len(runs) == 2
