"""The C99 bundle under QEMU: every core, portable and with SIMD, bit for bit."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from convert import emulate
from convert.boards import BOARDS, Board
from convert.c99.generate import SOURCE_FILE, generate
from convert.flatbuffer import write
from convert.frontend_tables import write_frontend
from convert.golden import made_seconds, seconds_of
from firmware_ref.arch import Network
from firmware_ref.errors import CheckFailedError, InputError
from firmware_ref.fixed_frontend import FixedFrontend
from firmware_ref.graph import Graph, parse
from firmware_ref.signals import as_wav
from tests.convert.bundles import run
from tests.convert.members import REPORT, SMALL, device_network, examples, identity
from train.device import device_graph
from train.ranges import calibrate

needs_emulator = pytest.mark.skipif(
    not (shutil.which(emulate.COMPILER) and shutil.which(emulate.EMULATOR)),
    reason=f"needs a cross compiler and QEMU: apt-get install {emulate.PACKAGES}",
)


# Four sub-bands, and channels that fill no group of weights or values.
ODD = replace(SMALL, stem_channels=9, widths=(7, 11), classes=5)


def converted(network: Network, count: int = 4) -> Graph:
    """A network of random weights, calibrated, with the metadata of a converted model."""
    device = device_network(network)
    calibrate(device, [examples(network, count, 0)], 0)
    values = identity(network)
    metadata = {key: values[key] for key in ("labels", "features", "input_normalization")}
    content = json.dumps(metadata).encode()
    return parse(write(replace(device_graph(device), metadata={"tinyscene": content})))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return converted(REPORT)


@pytest.fixture(scope="module")
def odd() -> Graph:
    return converted(ODD)


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
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
def test_sub_bands_and_odd_channels(odd: Graph, core: str, tmp_path: Path) -> None:
    """Equal bit for bit, and flash that is the model's without what only this program needs."""
    for found in emulate.emulate(odd, made_seconds(["noise"]), [core], "-O2")[0]:
        assert found.flash_bytes == shipped_bytes(odd, BOARDS[core], found.build, tmp_path)


def shipped_bytes(graph: Graph, board: Board, build: str, folder: Path) -> int:
    """Bytes of all sections that a board would hold, compiled as a user of the bundle does."""
    for name, text in generate(graph).files.items():
        (folder / name).write_text(text, encoding="ascii")
    write_frontend(FixedFrontend.of_graph(graph), folder)
    flags = ["--specs=picolibc.specs", "-mthumb", "-std=c99", "-O2", "-ffunction-sections"]
    flags += [*board.flags, f"-DTINYSCENE_SIMD={int(build == 'simd')}"]
    total = 0
    for source in ("tinyscene_model.c", "tinyscene_frontend.c"):
        run(emulate.COMPILER, *flags, "-c", source, "-o", "object.o", cwd=folder)
        listed = run("arm-none-eabi-objdump", "-h", "object.o", cwd=folder)
        sections = re.findall(r"^ *\d+ \S+ +([0-9a-f]{8}) .*\n +CONTENTS, ALLOC", listed, re.M)
        total += sum(int(size, 16) for size in sections)
    return total


@needs_emulator
@pytest.mark.parametrize("memory", ["flash", "ram"])
def test_a_model_too_large_for_a_board_is_bad_input(
    odd: Graph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    memory: str,
) -> None:
    core = BOARDS["cortex-m4"]
    small = replace(core, **{memory: (getattr(core, memory)[0], 40_000)})
    monkeypatch.setattr(emulate, "BOARDS", {core.core: small})
    (tmp_path / "model.tflite").write_bytes(write(odd))
    arguments = ["--model", str(tmp_path / "model.tflite"), "--core", core.core]
    assert emulate.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not fit cortex-m4's board, mps2-an386" in line and "40,000" in line


@needs_emulator
def test_one_nudged_weight_is_seen_with_its_layer(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated = generate(graph)
    text = generated.files[SOURCE_FILE]
    found = re.compile(r"TS_W4\((-?\d+),").search(text, text.index("stage4_block1_expand_weights["))
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
    deep = converted(replace(SMALL, widths=(8,), blocks=(130,), ssn_bands=1), 2)
    (found, _), _ = emulate.emulate(deep, made_seconds(["noise"]), ["cortex-m4"], "-O2")
    assert len(found.layers) > 512


def test_a_tool_that_fails_is_quoted_and_no_failed_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="ended with 3: told why; check") as failed:
        emulate._tool(["sh", "-c", "echo told why; exit 3"], tmp_path)
    monkeypatch.setattr(emulate, "SECONDS", 0.1)
    with pytest.raises(InputError, match=r"did not end within 0\.1 s; give") as late:
        emulate._tool(["sleep", "5"], tmp_path)
    assert {failed.type, late.type} == {InputError}


HOSTILE = "pool\n::error file=x::injected\x1b[31m ##[error]"


def test_names_of_layers_and_windows_are_printed_escaped(
    graph: Graph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    layers = (emulate.Layer(HOSTILE, 1000),)
    costs = {field.name: 1 for field in fields(emulate.Measured)}
    measured = emulate.Measured(**{**costs, "core": "cortex-m4", "build": "simd", "layers": layers})
    monkeypatch.setattr(emulate, "emulate", lambda *_: ([measured], []))
    monkeypatch.setattr(emulate, "labels_of", lambda *_: [(HOSTILE, "##[group]Straße", 0.5)])
    model = tmp_path / "model.tflite"
    model.write_bytes(write(graph))
    assert emulate.main(["--model", str(model)]) == 0
    text = capsys.readouterr().out
    assert text.count("pool\\n::error") == 2 and "Straße (50%)" in text
    for line in text.splitlines():
        assert line.isprintable() and not line.startswith("::") and "##[" not in line
    assert emulate.main(["--model", str(model), "--json"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["measured"][0]["layers"][0]["name"] == HOSTILE
    assert text.replace("\n", "").isprintable() and "##[" not in text


def test_seconds_are_named_by_file_and_place(tmp_path: Path) -> None:
    clip = tmp_path / "a.wav"
    clip.write_bytes(as_wav(np.zeros(2 * 44_100), 44_100))
    names = [name for name, _ in seconds_of([clip])]
    assert names == ["a.wav, second 0", "a.wav, second 1"]
