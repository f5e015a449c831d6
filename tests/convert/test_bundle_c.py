"""The C of a bundle, compiled as it is written: the self-test passes, and fails where it must."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from convert.bundle import arena
from convert.bundle.contents import Bundle, bundle
from tests.convert.bundles import facts_of, hostile_bundle, written
from tests.convert.host_c import STRICT, compile_c, compiler
from tests.convert.members import Converted


@pytest.fixture(scope="module")
def c99(small: Converted) -> Bundle:
    return bundle(facts_of(small.checkpoint), "c99")


@pytest.fixture(scope="module")
def micro(small: Converted) -> Bundle:
    return bundle(facts_of(small.checkpoint), "tflite-micro")


def self_test(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Compile the C99 bundle without a warning, and run its self-test."""
    sources = sorted(str(path.relative_to(folder)) for path in folder.glob("src/*.c"))
    flags = ("-O2", "-Isrc", "-DTINYSCENE_SELF_TEST_MAIN", *flags)
    compile_c(folder, sources, "self_test", *flags)
    return subprocess.run([folder / "self_test"], capture_output=True, text=True, check=False)


def test_the_self_test_passes(c99: Bundle, tmp_path: Path) -> None:
    done = self_test(written(c99, tmp_path), "-fsanitize=address,undefined")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS" in done.stdout and "FAIL" not in done.stdout


@pytest.mark.parametrize(
    ("file", "array"),
    [
        ("tinyscene_golden.h", r"tinyscene_golden_samples_0\[\w+\] = \{"),
        ("tinyscene_golden.h", r"tinyscene_golden_input_0\[\w+\] = \{"),
        ("tinyscene_model.c", r"classifier_bias\[\d+\] = \{"),
        ("tinyscene_frontend_tables.h", r"mel_rise\[\d+\] = \{"),
    ],
)
def test_one_nudged_value_fails_it(c99: Bundle, tmp_path: Path, file: str, array: str) -> None:
    folder = written(c99, tmp_path)
    path = folder / "src" / file
    text = path.read_text()
    start = re.search(array, text)
    assert start
    # A value in the middle of the array, by far another.
    end = text.index("}", start.end())
    values = list(re.finditer(r"-?\d+", text[start.end() : end]))
    place = values[len(values) // 2]
    other = "5000" if "samples" in array or "rise" in array else "-77"
    if "bias" in array:
        other = "900000"
    at = start.end() + place.start()
    path.write_text(text[:at] + other + text[start.end() + place.end() :])
    done = self_test(folder)
    assert done.returncode == 1, done.stdout
    assert "FAIL" in done.stdout


def test_hostile_labels_compile(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    folder = written(hostile_bundle(tmp_path, "c99"), tmp_path / "bundle")
    assert self_test(folder).returncode == 0


def test_cmake_builds_and_tests_it(c99: Bundle, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("needs CMake: apt-get install cmake make")
    compiler()
    folder = written(c99, tmp_path / "bundle")
    for command in (
        ["cmake", "-S", str(folder), "-B", "build"],
        ["cmake", "--build", "build"],
        ["ctest", "--test-dir", "build", "--output-on-failure"],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


# For TFLite Micro

# The part of its interface that a bundle uses, as its headers declare it.
MICRO = "tensorflow/lite/micro"
TFLM = {
    f"{MICRO}/micro_mutable_op_resolver.h": """
#pragma once
enum TfLiteStatus { kTfLiteOk, kTfLiteError };
namespace tflite {
class MicroOpResolver {};
template <unsigned int count> class MicroMutableOpResolver : public MicroOpResolver {
 public:
  TfLiteStatus AddAdd();
  TfLiteStatus AddAveragePool2D();
  TfLiteStatus AddConcatenation();
  TfLiteStatus AddConv2D();
  TfLiteStatus AddDepthwiseConv2D();
  TfLiteStatus AddLogistic();
  TfLiteStatus AddMaxPool2D();
  TfLiteStatus AddMul();
  TfLiteStatus AddPad();
  TfLiteStatus AddReshape();
  TfLiteStatus AddRsqrt();
  TfLiteStatus AddSlice();
  TfLiteStatus AddSub();
};
}
""",
    f"{MICRO}/micro_interpreter.h": """
#pragma once
#include <cstddef>
#include <cstdint>
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"
struct TfLiteTensor { union { int8_t *int8; } data; size_t bytes; };
namespace tflite {
class MicroInterpreter {
 public:
  MicroInterpreter(const Model *, const MicroOpResolver &, uint8_t *, size_t);
  TfLiteStatus AllocateTensors();
  TfLiteStatus Invoke();
  TfLiteTensor *input(size_t);
  TfLiteTensor *output(size_t);
};
}
""",
    "tensorflow/lite/schema/schema_generated.h": """
#pragma once
namespace tflite { struct Model { unsigned int version() const; };
const Model *GetModel(const void *); }
""",
}


def test_the_stated_arena_suffices_and_16_bytes_less_do_not(micro: Bundle) -> None:
    model = micro.files["model.tflite"]
    found = arena.measure(model)
    assert arena._attempt(model, found.least) is not None
    assert arena._attempt(model, found.least - 16) is None
    stated = re.search(
        r"#define TINYSCENE_ARENA_BYTES (\d+)", micro.files["src/model_config.h"].decode()
    )
    assert stated and int(stated[1]) == found.bytes == found.least + arena.MARGIN_BYTES


def test_the_resolver_has_exactly_the_operators_of_the_model(micro: Bundle) -> None:
    text = micro.files["src/op_resolver.h"].decode()
    added = re.findall(r"\bAdd(\w+)\(\)", text)
    count = re.search(r"MicroMutableOpResolver<(\w+)>", text)
    assert count
    # Conv2D and CONV_2D, without what tells words apart.
    operators = {kind.replace("_", "").lower() for kind in micro.manifest["model"]["operators"]}
    assert len(added) == len(operators) == len({name.lower() for name in added})
    assert {name.lower() for name in added} == operators


def test_headers_and_front_end_compile_as_c_and_cplusplus(micro: Bundle, tmp_path: Path) -> None:
    folder = written(micro, tmp_path)
    compile_c(folder, ["src/tinyscene_frontend.c"], "frontend.o", "-O2", "-c", "-Isrc")
    cplusplus = shutil.which("g++") or pytest.skip("needs a C++ compiler: apt-get install g++")
    (folder / "stub").mkdir()
    for name, text in TFLM.items():
        (folder / "stub" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "stub" / name).write_text(text)
    strict = [flag for flag in STRICT if flag.startswith("-W") and "prototypes" not in flag]
    sources = [*sorted(str(p.relative_to(folder)) for p in folder.glob("src/*.cc")), "main.cc"]
    flags = ["-std=c++17", *strict, "-Isrc", "-Istub", "-fsyntax-only"]
    for more in ([], ["-DTINYSCENE_SELF_TEST_MAIN"]):
        command = [cplusplus, *flags, *more, *sources]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:3000]
