"""The C99 bundle under QEMU: every core, portable and with SIMD, bit for bit."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert import emulate
from convert.boards import BOARDS
from convert.c99.generate import SOURCE_FILE, generate
from convert.flatbuffer import write
from convert.golden import made_seconds, seconds_of
from firmware_ref.errors import CheckFailedError, InputError
from firmware_ref.graph import Graph, parse
from firmware_ref.signals import as_wav
from tests.convert.members import REPORT, SMALL, device_network, examples, identity
from train.device import device_graph
from train.ranges import calibrate

needs_emulator = pytest.mark.skipif(
    not (shutil.which(emulate.COMPILER) and shutil.which(emulate.EMULATOR)),
    reason=f"needs a cross compiler and QEMU: apt-get install {emulate.PACKAGES}",
)


@pytest.fixture(scope="module")
def graph() -> Graph:
    """`report-125k` of random weights, with the metadata of a converted model."""
    device = device_network(REPORT)
    calibrate(device, [examples(REPORT, 4, 0)], 0)
    values = identity(REPORT)
    metadata = {key: values[key] for key in ("labels", "features", "input_normalization")}
    content = json.dumps(metadata).encode()
    return parse(write(replace(device_graph(device), metadata={"tinyscene": content})))


@needs_emulator
@pytest.mark.parametrize("core", BOARDS)
def test_every_core_gives_the_same_bits_within_the_budget(graph: Graph, core: str) -> None:
    sounds = made_seconds(["sweep"])
    portable, simd = emulate.emulate(graph, sounds, [core], "-O3")[0]
    assert (portable.build, simd.build) == ("portable", "simd")
    for found in (portable, simd):
        assert found.core == core and found.windows == 1
        # What the README states, with room for another compiler.
        assert found.network_ram_bytes <= 64_000
        assert found.instructions == sum(layer.instructions for layer in found.layers)
        assert 0 < found.network_stack_bytes < 1024 and 0 < found.frontend_stack_bytes < 2048
    assert portable.instructions < 45_000_000
    assert simd.instructions < 27_000_000
    assert portable.hop_instructions < 400_000


@needs_emulator
def test_one_nudged_weight_is_seen_with_its_layer(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated = generate(graph)
    text = generated.files[SOURCE_FILE]
    found = re.compile(r"TS_W4\((-?\d+),").search(text, text.index("stage4_block1_expand_weights"))
    assert found
    nudged = f"TS_W4({-int(found[1]) or 1},"
    files = {**generated.files, SOURCE_FILE: text[: found.start()] + nudged + text[found.end() :]}
    monkeypatch.setattr(emulate, "generate", lambda graph: replace(generated, files=files))
    with pytest.raises(
        CheckFailedError, match=r"cortex-m4, portable, noise: layer stage4\.block1\.expand differs"
    ):
        emulate.emulate(graph, made_seconds(["noise"]), ["cortex-m4"], "-O2")


@needs_emulator
def test_the_command_says_what_the_device_hears(
    graph: Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, clip = tmp_path / "model.tflite", tmp_path / "clip.wav"
    model.write_bytes(write(graph))
    rng = np.random.default_rng(0)
    clip.write_bytes(as_wav(0.1 * rng.standard_normal(2 * 44_100), 44_100))
    arguments = [str(clip), "--model", str(model), "--core", "cortex-m4"]
    assert emulate.main(arguments) == 0
    text = capsys.readouterr().out
    assert "clip.wav, second 0: class " in text and "clip.wav, second 1: class " in text
    assert "equal bit for bit on 2 builds" in text and "stem.conv" in text
    assert emulate.main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] and len(document["windows"]) == 2
    assert {m["build"] for m in document["measured"]} == {"portable", "simd"}


def test_missing_tools_are_named(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match="apt-get install gcc-arm-none-eabi"):
        emulate.emulate(graph, made_seconds(["noise"]), ["cortex-m4"], "-O2")


def test_what_a_model_says_is_one_escaped_line(
    graph: Graph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "model.tflite"
    model.write_bytes(write(graph))

    def fail(*_: object) -> None:
        raise CheckFailedError("layer a\x1b[31m\n::error::b differs")

    monkeypatch.setattr(emulate, "emulate", fail)
    assert emulate.main(["--model", str(model)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: layer a") and line.isprintable()


@needs_emulator
def test_a_network_of_more_layers_than_any_preset_runs() -> None:
    network = replace(SMALL, widths=(8,), blocks=(130,), ssn_bands=1)
    device = device_network(network)
    calibrate(device, [examples(network, 2, 0)], 0)
    values = identity(network)
    metadata = {key: values[key] for key in ("labels", "features", "input_normalization")}
    content = json.dumps(metadata).encode()
    deep = parse(write(replace(device_graph(device), metadata={"tinyscene": content})))
    (found, _), _ = emulate.emulate(deep, made_seconds(["noise"]), ["cortex-m4"], "-O2")
    assert len(found.layers) > 512


def test_a_tool_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(CheckFailedError, match="ended with 3: told why"):
        emulate._tool(["sh", "-c", "echo told why; exit 3"], tmp_path)


def test_seconds_are_named_by_file_and_place(tmp_path: Path) -> None:
    clip = tmp_path / "a.wav"
    clip.write_bytes(as_wav(np.zeros(2 * 44_100), 44_100))
    names = [name for name, _ in seconds_of([clip])]
    assert names == ["a.wav, second 0", "a.wav, second 1"]
