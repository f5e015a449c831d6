"""What builds a bundle: CMake, Arduino and Zephyr find the same sources; the classifier hears."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert.bundle.contents import Bundle, bundle
from convert.bundle.facts import Facts
from firmware_ref.audio import read_audio
from firmware_ref.classify import Classifier
from firmware_ref.fixed_frontend import pcm16
from tests.convert.bundles import HOSTILE, facts_of, hostile_bundle, run, tool, written
from tests.convert.host_c import compile_c
from tests.convert.members import Converted
from tests.convert.tflm_stub import HEADERS, write_stub

HOP, CLIP = 1024, 44_100
STEP = 44 * HOP  # of the classifier: the rest of a second's last hop is left out
CXX = ["-std=c++17", "-Wall", "-Wextra", "-Werror"]
ARDUINO = """
#pragma once
#include <stdint.h>
struct Port {
  void begin(long); explicit operator bool() const;
  void print(const char *); void print(long); void println(const char *);
};
extern Port Serial;
"""


@pytest.fixture(scope="module")
def facts(small: Converted) -> Facts:
    return facts_of(small.checkpoint)


@pytest.fixture(scope="module", params=["c99", "tflite-micro"])
def made(request: pytest.FixtureRequest, facts: Facts) -> Bundle:
    return bundle(facts, request.param)


def sources(made: Bundle) -> set[str]:
    return {name for name in made.files if re.fullmatch(r"src/\w+\.(c|cc)", name)}


@pytest.fixture(scope="module")
def built(facts: Facts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C99 bundle's programs, built by its CMakeLists.txt."""
    folder = tmp_path_factory.mktemp("cmake")
    written(bundle(facts, "c99"), folder / "bundle")
    run(tool("cmake", "cmake"), "-S", "bundle", "-B", "build", cwd=folder)
    run(tool("cmake", "cmake"), "--build", "build", cwd=folder)
    return folder / "build"


def test_cmake_builds_and_tests_c99(built: Path) -> None:
    assert "100% tests passed" in run(tool("ctest", "cmake"), "--test-dir", built, cwd=built)
    assert run(built / "tinyscene_self_test", cwd=built).endswith("PASS: 1 window, bit for bit\n")


APPLICATION = """\
cmake_minimum_required(VERSION 3.13)
project(application C)
add_subdirectory(bundle)
add_executable(application application.c)
target_link_libraries(application PRIVATE tinyscene)
"""
CALLS = """
#include "tinyscene_model.h"
static tinyscene_memory memory;
int main(void) { int8_t x[TINYSCENE_OUTPUTS]; tinyscene_run(&memory, x); return 0; }
"""


def test_an_application_takes_it_as_a_subdirectory(facts: Facts, tmp_path: Path) -> None:
    written(bundle(facts, "c99"), tmp_path / "bundle")
    (tmp_path / "CMakeLists.txt").write_text(APPLICATION)
    (tmp_path / "application.c").write_text(CALLS)
    run(tool("cmake", "cmake"), "-B", "build", cwd=tmp_path)
    run(tool("cmake", "cmake"), "--build", "build", cwd=tmp_path)
    run(tmp_path / "build" / "application", cwd=tmp_path)
    assert not list((tmp_path / "build").rglob("tinyscene_classify*"))


def test_cmake_says_what_it_needs_of_tflite_micro(facts: Facts, tmp_path: Path) -> None:
    written(bundle(facts, "tflite-micro"), tmp_path)
    with pytest.raises(AssertionError, match="set -DTFLM_DIR="):
        run(tool("cmake", "cmake"), "-B", "build", cwd=tmp_path)


def test_cmake_builds_for_tflite_micro_in_a_tree_of_its_layout(
    facts: Facts, tmp_path: Path
) -> None:
    """The tree is a stub in front of the C99 network."""
    written(bundle(facts, "tflite-micro"), tmp_path / "bundle")
    tree = tmp_path / "tree"
    write_stub(bundle(facts, "c99"), tree)
    runs = tree / "tensorflow" / "lite" / "runs.cc"
    (tree / "runs.cc").rename(runs)
    (tree / "tinyscene_model.c").rename(tree / "tensorflow" / "tinyscene_model.c")
    runs.write_text(
        runs.read_text().replace('"model_config.h"', '"../../../bundle/src/model_config.h"')
    )
    cmake = tool("cmake", "cmake")
    run(cmake, "-S", "bundle", "-B", "build", f"-DTFLM_DIR={tree}", cwd=tmp_path)
    run(cmake, "--build", "build", cwd=tmp_path)
    assert "PASS: 1 window" in run(tmp_path / "build" / "tinyscene_self_test", cwd=tmp_path)
    assert run(tmp_path / "build" / "tinyscene_classify", cwd=tmp_path) == ""


def expected(facts: Facts, pcm: np.ndarray) -> list[str]:
    """What the classifier prints of samples, by `firmware_ref`."""
    starts = [at for at in range(0, len(pcm), STEP) if len(pcm) - at > 43 * HOP]
    clips = [np.pad(pcm[at : at + CLIP], (0, max(0, at + CLIP - len(pcm)))) for at in starts]
    classifier = Classifier(facts.conversion.graph)
    shares = classifier.probabilities(classifier.frontend.inputs(np.stack(clips)))
    return [
        f"{facts.labels[int(share.argmax())]} {int(100 * share.max() + 0.5)} %" for share in shares
    ]


def test_the_classifier_prints_label_and_score_each_second(
    facts: Facts, built: Path, rng: np.random.Generator
) -> None:
    gains = np.repeat([0.01, 0.3, 0.0, 0.1], STEP)[: 3 * STEP + CLIP]
    pcm = pcm16(gains * rng.standard_normal(len(gains)))
    lines = run(built / "tinyscene_classify", cwd=built, stdin=pcm.tobytes()).splitlines()
    assert lines == expected(facts, pcm) and len(lines) == 4
    # A second that ends early is filled with silence; what is no 43 hops and more is left out.
    assert run(built / "tinyscene_classify", cwd=built, stdin=pcm[: 43 * HOP].tobytes()) == ""


def test_the_classifier_hears_a_recording(facts: Facts, built: Path, audio_data: Path) -> None:
    pcm = pcm16(read_audio(audio_data / "esc10" / "002 - Rain" / "1-17367-A.ogg", CLIP))
    lines = run(built / "tinyscene_classify", cwd=built, stdin=pcm.tobytes()).splitlines()
    assert lines == expected(facts, pcm) and len(lines) == 4


MICROPHONE = """
#include <stdint.h>
int board_read_hop(int16_t *hop);
int board_read_hop(int16_t *hop) {
    static int left = 44 * 3;
    for (int n = 0; n < 1024; ++n) { hop[n] = (int16_t)(n * 37 % 1000); }
    return left-- > 0;
}
"""


def test_a_microphone_of_ones_own_takes_the_place_of_the_weak_one(
    facts: Facts, tmp_path: Path
) -> None:
    folder = written(bundle(facts, "c99"), tmp_path)
    (folder / "microphone.c").write_text(MICROPHONE)
    files = ["main.c", "microphone.c", "src/tinyscene_model.c", "src/tinyscene_frontend.c"]
    compile_c(folder, files, "classify", "-O2", "-Isrc")
    hop = (np.arange(HOP) * 37 % 1000).astype(np.int16)
    lines = run(folder / "classify", cwd=folder).splitlines()
    assert lines == expected(facts, np.tile(hop, 44)) * 3


def test_hostile_labels_are_printed_as_they_are(tmp_path: Path) -> None:
    """As C strings, with trigraphs on; every one of them, by a classifier that never runs."""
    (tmp_path / "bundle").mkdir()
    for target, config in (("c99", "tinyscene_config.h"), ("tflite-micro", "model_config.h")):
        folder = written(hostile_bundle(tmp_path, target), tmp_path / "bundle")
        (folder / "labels.c").write_text(
            f'#include <stdio.h>\n#include "{config}"\n'
            "static const char *const labels[] = TINYSCENE_LABELS;\n"
            "int main(void) { for (int n = 0; n < TINYSCENE_OUTPUTS; ++n) puts(labels[n]);\n"
            "    return sizeof labels / sizeof *labels != TINYSCENE_OUTPUTS; }\n"
        )
        compile_c(folder, ["labels.c"], "labels", "-Isrc", "-trigraphs")
        assert run(folder / "labels", cwd=folder).splitlines() == list(HOSTILE)
        compile_c(folder, ["src/tinyscene_frontend.c"], "f.o", "-c", "-Isrc")


def test_arduino_sketches_compile(made: Bundle, tmp_path: Path) -> None:
    folder = written(made, tmp_path)
    stubs = {**HEADERS, "Arduino.h": ARDUINO, "Chirale_TensorFlowLite.h": ""}
    for name, text in stubs.items():
        (folder / "stub" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "stub" / name).write_text(text)
    sketches = sorted(name for name in made.files if name.endswith(".ino"))
    assert len(sketches) == 2
    for name in sketches:
        path = Path(name)
        assert path.stem == path.parent.name, "a sketch has the name of its folder"
        flags = [*CXX, "-Isrc", "-Istub", "-include", "Arduino.h", "-fsyntax-only", "-x", "c++"]
        run(tool("g++"), *flags, name, cwd=folder)


def test_the_arduino_library_is_described(made: Bundle) -> None:
    lines = made.files["library.properties"].decode().splitlines()
    values = dict(line.split("=", 1) for line in lines)
    wanted = "name version author maintainer sentence paragraph category url architectures"
    assert set(wanted.split()) <= set(values) and all(values.values())
    assert re.fullmatch(r"\d+\.\d+\.\d+", values["version"])
    for header in values["includes"].split(","):
        assert f"src/{header}" in made.files


# What Zephyr gives a module's CMakeLists.txt, printing its arguments.
CALLED = ("include_directories", "library_named", "library_sources", "library_compile_definitions")
ZEPHYR = "".join(
    f"""\
function(zephyr_{name})
    foreach(argument ${{ARGN}})
        message(STATUS "zephyr_{name} ${{argument}}")
    endforeach()
endfunction()
"""
    for name in CALLED
)


@pytest.mark.parametrize("options", [(), ("",), ("", "_SELF_TEST"), ("", "_SELF_TEST", "_SIMD")])
def test_zephyr_builds_the_same_sources(
    made: Bundle, tmp_path: Path, options: tuple[str, ...]
) -> None:
    folder = written(made, tmp_path / "bundle")
    (tmp_path / "zephyr.cmake").write_text(
        f"{ZEPHYR}include({folder / 'zephyr' / 'CMakeLists.txt'})\n"
    )
    flags = [f"-DCONFIG_TINYSCENE{option}=y" for option in options]
    text = run(tool("cmake", "cmake"), *flags, "-P", "zephyr.cmake", cwd=tmp_path)
    calls = re.findall(r"^-- (\w+) (\S+)$", text, re.MULTILINE)
    found = {
        str(Path(path).resolve().relative_to(folder)) for name, path in calls if "sour" in name
    }
    everything = sources(made)
    tests = {name for name in everything if "self_test" in name}
    assert len(tests) == 1
    if not options:
        assert calls == []
        return
    assert found == (everything if "_SELF_TEST" in options else everything - tests)
    simd = ("zephyr_library_compile_definitions", "TINYSCENE_SIMD=1") in calls
    assert simd == ("_SIMD" in options and made.parts.target == "c99")


def test_zephyr_finds_the_module_and_its_options(made: Bundle) -> None:
    yaml = pytest.importorskip("yaml")
    module = yaml.safe_load(made.files["zephyr/module.yml"])
    assert module == {
        "name": "tinyscene",
        "build": {"cmake": "zephyr", "kconfig": "zephyr/Kconfig"},
    }
    text = made.files["zephyr/Kconfig"].decode()
    options = re.findall(r"^config (\w+)$", text, re.MULTILINE)
    used = set(re.findall(r"CONFIG_(\w+)", made.files["zephyr/CMakeLists.txt"].decode()))
    assert used == set(options)
    assert len(re.findall(r"^if ", text, re.M)) == len(re.findall(r"^endif$", text, re.M)) == 1


def test_no_source_is_in_the_bundle_twice(made: Bundle) -> None:
    names = [Path(name).name for name in made.files]
    twice = {name for name in names if names.count(name) > 1}
    assert twice == {"CMakeLists.txt"}, "the project's and Zephyr's"


def test_a_version_that_is_no_number_stays_out_of_cmake(
    facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.bundle.facts.version", lambda _: '9.9.dev0+"x"')
    made = bundle(replace(facts), "c99")
    assert b"9.9" not in made.files["CMakeLists.txt"]
    assert b'TINYSCENE_VERSION "9.9.dev0+\\"x\\""' in made.files["src/tinyscene_config.h"]
