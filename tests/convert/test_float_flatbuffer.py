"""onnx2tf in a process of its own: no network, and no failure without a plain word."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert.float_flatbuffer import SAMPLE_FILE, convert_float
from firmware_ref.errors import InputError
from tests.convert.members import Converted
from tests.convert.offline import offline

# Stands in for the interpreter that runs ``-m onnx2tf -i FILE -o FOLDER ...``.
STAND_IN = """#!/bin/sh
set -e
test "$1 $2 $3 $5" = "-m onnx2tf -i -o"
{body}
"""


@pytest.fixture
def onnx2tf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let the script at the returned path run in place of Python."""
    script = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(script))
    return script


def stand_in(script: Path, body: str) -> None:
    script.write_text(STAND_IN.format(body=body))
    script.chmod(0o755)


def test_conversion_needs_no_network(converted: Converted) -> None:
    """It ran with every connection refused, in every Python it started; none was tried."""
    lines = converted.network_log.splitlines()
    assert [line for line in lines if "-m onnx2tf" in line and line.startswith("closed in")]
    assert [line for line in lines if line.startswith("attempt")] == []


def test_an_attempt_would_have_been_seen(tmp_path: Path) -> None:
    """The block works: here, and in a child, by the library that onnx2tf fetches files with."""
    code = "import requests; requests.get('http://127.0.0.1:9', timeout=5)"
    with offline(tmp_path) as log:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode and "the network is closed" in done.stderr
        lines = log.read_text().splitlines()
        assert [line.split()[0] for line in lines] == ["closed", "attempt"]
        with pytest.raises(OSError, match="the network is closed"):
            socket.create_connection(("127.0.0.1", 9))
        assert len(log.read_text().splitlines()) == 3


def test_the_sample_file_lies_where_onnx2tf_looks(onnx2tf: Path, tmp_path: Path) -> None:
    """It reads `SAMPLE_FILE` in its working directory in place of fetching it."""
    stand_in(onnx2tf, f'mkdir "$6"; cp {SAMPLE_FILE} "$6/net_float32.tflite"')
    found = convert_float(tmp_path / "net.onnx", tmp_path)
    samples = np.load(found)
    assert samples.shape == (20, 128, 128, 3) and samples.dtype == np.float32


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo one; echo 'two words' >&2; exit 3", "exit code 3: two words; is the environment"),
        ("echo on standard output; exit 1", "exit code 1: on standard output;"),
        ("exit 0", "exit code 0: no output;"),
        (r"printf '\377\376\n' >&2; exit 1", "exit code 1: \N{REPLACEMENT CHARACTER}"),
        ("kill -9 $$", "exit code -9: no output;"),
    ],
)
def test_a_failure_is_told_in_its_last_words(
    onnx2tf: Path, tmp_path: Path, body: str, words: str
) -> None:
    stand_in(onnx2tf, body)
    with pytest.raises(InputError) as caught:
        convert_float(tmp_path / "net.onnx", tmp_path)
    assert f"onnx2tf failed with {words}" in str(caught.value)


def test_a_run_without_end_is_ended(
    onnx2tf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.float_flatbuffer.TIMEOUT_SECONDS", 0.2)
    stand_in(onnx2tf, "exec sleep 20")
    with pytest.raises(InputError, match=r"took over 0\.2 s"):
        convert_float(tmp_path / "net.onnx", tmp_path)
