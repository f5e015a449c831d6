"""The C front end is the NumPy one, bit for bit, and keeps the rules of C."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from convert.frontend_tables import SOURCE_FILES, TABLES_FILE, frontend_tables, write_frontend
from firmware_ref.audio import read_audio, windows
from firmware_ref.features import FeatureDefinition
from firmware_ref.fixed_fft import cosines
from firmware_ref.fixed_frontend import FixedFrontend, mel_segments, pcm16
from firmware_ref.fixed_log import log_table
from tests.convert.frontend_c import (
    FLAGS,
    HOP,
    HOPS,
    CFrontend,
    built,
    compiler,
    extremes,
    run,
    shipped_graph,
)

ARRAY = re.compile(r"static const (\w+) (\w+)\[(\d+)\] = \{\n(.*?)\n\};", re.S)
SIZES = {"uint8_t": 1, "uint16_t": 2, "int32_t": 4, "uint32_t": 4, "int64_t": 8}
# Reads clips of 44,100 samples and writes their inputs.
MAIN = r"""
#include <stdio.h>
#include "tinyscene_frontend.h"
static tinyscene_frontend frontend;
static int16_t clip[TINYSCENE_FRONTEND_SAMPLES];
static int8_t output[TINYSCENE_FRONTEND_OUTPUT];
int main(void)
{
    while (fread(clip, sizeof clip, 1, stdin) == 1) {
        const int16_t *hop = clip;
        tinyscene_frontend_begin(&frontend);
        for (int i = 0; i < TINYSCENE_FRONTEND_HOPS; ++i, hop += TINYSCENE_FRONTEND_HOP) {
            if (!tinyscene_frontend_push(&frontend, hop)) return 1;
        }
        if (!tinyscene_frontend_finish(&frontend, hop, output)) return 1;
        fwrite(output, sizeof output, 1, stdout);
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def twin() -> FixedFrontend:
    return FixedFrontend.of_graph(shipped_graph())


@pytest.fixture(scope="module")
def compiled(twin: FixedFrontend, tmp_path_factory: pytest.TempPathFactory) -> CFrontend:
    return built(twin, tmp_path_factory.mktemp("frontend"))


# Bits


def test_extremes_are_equal(
    compiled: CFrontend, twin: FixedFrontend, rng: np.random.Generator
) -> None:
    clips = extremes(rng)
    np.testing.assert_array_equal(compiled.inputs(clips), twin.inputs(clips))


def test_log_mel_alone_is_equal(
    twin: FixedFrontend, rng: np.random.Generator, tmp_path: Path
) -> None:
    alone = FixedFrontend(twin.maps[:1])
    clips = extremes(rng)
    found = built(alone, tmp_path).inputs(clips)
    np.testing.assert_array_equal(found, twin.inputs(clips)[..., :1])
    assert "#define TINYSCENE_FRONTEND_CHANNELS 1\n" in (tmp_path / SOURCE_FILES[0]).read_text()


def test_noise_of_every_level_is_equal(
    compiled: CFrontend, twin: FixedFrontend, rng: np.random.Generator
) -> None:
    levels = 10 ** rng.uniform(0, 4.5, (20, 44, 1))
    clips = np.rint(rng.standard_normal((20, 44, 1024)) * levels).clip(-32768, 32767)
    pcm = clips.reshape(20, -1)[:, :44_100].astype(np.int16)
    np.testing.assert_array_equal(compiled.inputs(pcm), twin.inputs(pcm))


def test_recordings_are_equal(compiled: CFrontend, twin: FixedFrontend, audio_data: Path) -> None:
    paths = sorted((audio_data / "esc10").glob("*/*.ogg"))[::20]
    assert len(paths) == 20
    definition = FeatureDefinition()
    for path in paths:
        clips = pcm16(windows(read_audio(path, 44_100), definition))
        np.testing.assert_array_equal(compiled.inputs(clips), twin.inputs(clips), path.name)


@pytest.mark.parametrize(
    ("table", "entry"),
    [
        *(("cosine", k) for k in (0, 6, 1530, 2047)),
        *(("mel_rise", k) for k in (0, 500, 1020)),
        *(("logarithm", k) for k in (1, 100, 256)),
        *(("channel_multiplier", c) for c in range(3)),
        *(("channel_offset", c) for c in range(3)),
    ],
)
def test_a_nudged_table_value_is_seen(
    table: str, entry: int, twin: FixedFrontend, rng: np.random.Generator, tmp_path: Path
) -> None:
    def nudge(text: str) -> str:
        """The entry, an eighth smaller."""
        (found,) = [m for m in ARRAY.finditer(text) if m[2] == table]
        words = re.findall(r"\S+,", found[4])
        number = int(re.findall(r"-?\d+", words[entry])[-1])
        words[entry] = words[entry].replace(str(number), str(number * 7 // 8))
        return text.replace(found[4], " ".join(words))

    clips = extremes(rng)[-8:]
    changed = built(twin, tmp_path, nudge)
    assert not np.array_equal(changed.inputs(clips), twin.inputs(clips))


# Hop by hop


def test_a_second_follows_another_and_an_abandoned_one(
    compiled: CFrontend, twin: FixedFrontend, rng: np.random.Generator
) -> None:
    clips = rng.integers(-32768, 32768, (2, 44_100)).astype(np.int16)
    compiled.begin()
    assert compiled.push(clips[0, :HOP])
    np.testing.assert_array_equal(compiled.inputs(clips), twin.inputs(clips))


def test_calls_out_of_order_are_refused_and_change_nothing(
    compiled: CFrontend, twin: FixedFrontend, rng: np.random.Generator
) -> None:
    clip = rng.integers(-32768, 32768, 44_100).astype(np.int16)
    hops, tail = clip[: HOP * HOPS].reshape(HOPS, HOP), clip[HOP * HOPS :]
    compiled.begin()
    for hop in hops:
        assert compiled.finish(tail) is None
        assert compiled.push(hop)
    assert not compiled.push(hops[0])
    np.testing.assert_array_equal(compiled.finish(tail), twin.inputs(clip))
    assert compiled.finish(tail) is None and not compiled.push(hops[0])


def test_the_state_takes_32_kilobytes(compiled: CFrontend) -> None:
    log_mels, spectrum, previous, frames = 128 * 44 * 4, 1024 * 8, 1024 * 2, 4
    assert compiled.state_bytes == log_mels + spectrum + previous + frames == 32_772


# Files


def test_the_same_front_end_gives_the_same_files(twin: FixedFrontend, tmp_path: Path) -> None:
    files = [write_frontend(twin, tmp_path / name) for name in "ab"]
    names = [path.name for path in files[0]]
    assert names == [*SOURCE_FILES, TABLES_FILE] == [path.name for path in files[1]]
    for first, second in zip(*files, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert all(len(line) <= 100 for line in files[0][-1].read_text().splitlines())


def test_the_arrays_are_those_of_the_twin(twin: FixedFrontend) -> None:
    found = {
        name: (kind, [int(number) for number in re.findall(r"(?<![\w])-?\d+", body)])
        for kind, name, _, body in ARRAY.findall(frontend_tables(twin))
    }
    bins, rises = mel_segments()
    assert {name: values for name, (_, values) in found.items()} == {
        "cosine": cosines().tolist(),
        "mel_bins": bins.tolist(),
        "mel_rise": rises.tolist(),
        "logarithm": log_table().tolist(),
        "channel_multiplier": [m.multiplier for m in twin.maps],
        "channel_offset": [m.offset for m in twin.maps],
        "channel_shift": [m.shift for m in twin.maps],
    }
    assert sum(SIZES[kind] * len(values) for kind, values in found.values()) == 11_433


@pytest.mark.parametrize("optimisation", ["-O0", "-O2", "-O3"])
def test_it_is_clean_under_the_sanitizers(
    optimisation: str, twin: FixedFrontend, rng: np.random.Generator, tmp_path: Path
) -> None:
    write_frontend(twin, tmp_path)
    (tmp_path / "main.c").write_text(MAIN)
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", optimisation]
    sources = [tmp_path / "main.c", tmp_path / "tinyscene_frontend.c"]
    run(compiler("gcc", "gcc"), *FLAGS, *sanitize, *sources, "-o", tmp_path / "main")
    clips = extremes(rng)
    output = run(tmp_path / "main", stdin=clips.tobytes())
    found = np.frombuffer(output, np.int8).reshape(-1, 128, 44, 3)
    np.testing.assert_array_equal(found, twin.inputs(clips))


def test_it_compiles_for_a_microcontroller_and_calls_nothing(
    twin: FixedFrontend, tmp_path: Path
) -> None:
    write_frontend(twin, tmp_path)
    object_file = tmp_path / "frontend.o"
    cross = compiler("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    source = tmp_path / "tinyscene_frontend.c"
    run(cross, *FLAGS, "-mcpu=cortex-m4", "-mthumb", "-c", source, "-o", object_file)
    names = run(cross.replace("gcc", "nm"), "-u", object_file).decode().split()
    # Compilers make these of loops, and require them of any system.
    assert {name for name in names if name != "U"} <= {"memcpy", "memset"}
    sizes = run(cross.replace("gcc", "size"), object_file).decode().split()[6:9]
    text, data, zeroed = map(int, sizes)
    assert text < 16_000 and (data, zeroed) == (0, 0)


def test_the_header_is_one_for_cplusplus_too(twin: FixedFrontend, tmp_path: Path) -> None:
    write_frontend(twin, tmp_path)
    source = tmp_path / "use.cc"
    source.write_text('#include "tinyscene_frontend.h"\n#include "tinyscene_frontend.h"\n')
    flags = ["-std=c++11", "-Wall", "-Wextra", "-Werror", "-c"]
    run(compiler("g++", "g++"), *flags, source, "-o", tmp_path / "use.o")


def test_no_float_is_in_the_sources(twin: FixedFrontend, tmp_path: Path) -> None:
    for path in write_frontend(twin, tmp_path):
        code = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S)
        assert not re.search(r"\b(float|double|malloc|math\.h)\b|\d\.\d|\de-?\d", code), path.name


def test_a_missing_compiler_is_a_skip_that_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match="apt-get install gcc"):
        compiler("gcc", "gcc")
