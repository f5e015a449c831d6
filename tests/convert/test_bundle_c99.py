"""The C99 bundle, compiled as it is written: the self-test passes, and fails where it must."""

from __future__ import annotations

import re
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convert.bundle.contents import Bundle, bundle
from convert.bundle.facts import Facts
from convert.bundle.windows import prove
from convert.golden import made_seconds
from firmware_ref.frontend import probabilities
from firmware_ref.graph import Quantization
from firmware_ref.scheme import dequantize, quantize
from tests.convert.bundles import conversion, run, tool, written
from tests.convert.host_c import compile_c, compiler
from tests.convert.members import Converted


@pytest.fixture(scope="module")
def facts(small: Converted) -> Facts:
    return prove(conversion(small.checkpoint), made_seconds(["impulses", "noise"]))


@pytest.fixture(scope="module")
def made(facts: Facts) -> Bundle:
    return bundle(facts, "c99")


def self_test(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Compile the bundle without a warning, and run its self-test."""
    sources = sorted(str(path.relative_to(folder)) for path in folder.glob("src/*.c"))
    flags = ("-O2", "-Isrc", "-DTINYSCENE_SELF_TEST_MAIN", *flags)
    compile_c(folder, sources, "self_test", *flags)
    return subprocess.run([folder / "self_test"], capture_output=True, text=True, check=False)


def test_the_self_test_passes(facts: Facts, made: Bundle, tmp_path: Path) -> None:
    done = self_test(written(made, tmp_path), "-fsanitize=address,undefined")
    assert done.returncode == 0, done.stdout + done.stderr
    expected = []
    for number, golden in enumerate(facts.goldens):
        expected.append(f"window {number}, {golden.name}")
        for what, values in (("input ", golden.input), ("logits", golden.logits)):
            crc = f"{zlib.crc32(values.tobytes()):08x}"
            expected.append(f"  {what} crc32 {crc}, expected {crc}: PASS")
    assert done.stdout.splitlines() == [*expected, "PASS: 2 windows, bit for bit"]


def nudged(folder: Path, file: str, array: str, value: Callable[[int], int]) -> None:
    """Change the number in the middle of an array of a source."""
    path = folder / "src" / file
    text = path.read_text()
    start = re.search(rf"\b{array}\[\w+\][^=]*= \{{", text)
    assert start
    numbers = list(re.finditer(r"-?\d+", text[start.end() : text.index("}", start.end())]))
    number = numbers[len(numbers) // 2]
    at = start.end() + number.start()
    path.write_text(text[:at] + str(value(int(number[0]))) + text[start.end() + number.end() :])


@pytest.mark.parametrize(
    ("file", "array", "fails", "passes"),
    [
        # The front end fails, and the network, given the right input, passes: and the reverse.
        ("tinyscene_frontend_tables.h", "mel_rise", "input ", "logits"),
        ("tinyscene_model.c", r"layer\d+_classifier_bias", "logits", "input "),
    ],
)
def test_one_nudged_constant_fails_that_half_in_every_window(
    made: Bundle, tmp_path: Path, file: str, array: str, fails: str, passes: str
) -> None:
    folder = written(made, tmp_path)
    nudged(folder, file, array, lambda value: value + 20_000 if value < 32_000 else value - 20_000)
    done = self_test(folder)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[-1] == "FAIL: windows 0 1"
    assert sum(line.startswith(f"  {fails} ") and line.endswith(": FAIL") for line in lines) == 2
    assert sum(line.startswith(f"  {passes} ") and line.endswith(": PASS") for line in lines) == 2
    assert (
        sum(bool(re.fullmatch(r"    first at \d+: -?\d+, expected -?\d+", x)) for x in lines) == 2
    )


def test_one_nudged_code_names_its_window_and_place(
    facts: Facts, made: Bundle, tmp_path: Path
) -> None:
    """By the least there is: one step of one code."""
    folder = written(made, tmp_path)
    codes = facts.goldens[1].input.reshape(-1)
    middle = len(codes) // 2
    other = int(codes[middle]) + (1 if codes[middle] < 127 else -1)
    nudged(folder, "tinyscene_golden.h", "tinyscene_golden_input_1", lambda _: other)
    done = self_test(folder)
    assert done.returncode == 1 and done.stdout.splitlines()[-1] == "FAIL: windows 1"
    line = f"    first at {middle}: {codes[middle]}, expected {other}"
    assert line in done.stdout.splitlines()


PRINTS_NOTHING = """
#include "tinyscene_self_test.h"
static tinyscene_memory memory;
static tinyscene_frontend frontend;
int main(void) { return tinyscene_self_test(&memory, &frontend, 0); }
"""


def test_without_a_printer_the_exit_code_remains(made: Bundle, tmp_path: Path) -> None:
    folder = written(made, tmp_path)
    (folder / "quiet.c").write_text(PRINTS_NOTHING)
    sources = ["quiet.c", *(str(p.relative_to(folder)) for p in folder.glob("src/*.c"))]
    compile_c(folder, sources, "quiet", "-O2", "-Isrc")
    assert run(folder / "quiet", cwd=folder) == ""
    nudged(folder, "tinyscene_model.c", r"layer\d+_classifier_bias", lambda value: value + 20_000)
    compile_c(folder, sources, "quiet", "-O2", "-Isrc")
    done = subprocess.run([folder / "quiet"], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


CPLUSPLUS = r"""
#include "tinyscene_config.h"
#include "tinyscene_self_test.h"
static const char *const labels[TINYSCENE_OUTPUTS] = TINYSCENE_LABELS;
int main() {
  static tinyscene_memory memory;
  static tinyscene_frontend frontend;
  return tinyscene_self_test(&memory, &frontend, nullptr) + (labels[0][0] == '\0');
}
"""


def test_cplusplus_links_with_it(made: Bundle, tmp_path: Path) -> None:
    folder = written(made, tmp_path)
    (folder / "main.cc").write_text(CPLUSPLUS)
    objects = []
    for source in sorted(folder.glob("src/*.c")):
        objects.append(f"{source.stem}.o")
        compile_c(folder, [str(source)], objects[-1], "-O2", "-c", "-Isrc")
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Isrc"]
    run(tool("g++"), *flags, "main.cc", *objects, "-o", "program", cwd=folder)
    run(folder / "program", cwd=folder)


ARITHMETIC = r"""
#include <stdint.h>
#include "tinyscene_config.h"
void quantize(const float *x, int8_t *codes, int32_t count);
void quantize(const float *x, int8_t *codes, int32_t count) {
    for (int32_t n = 0; n < count; ++n) { codes[n] = TINYSCENE_QUANTIZE(x[n]); }
}
void dequantize(float *reals);
void dequantize(float *reals) {
    for (int32_t n = -128; n < 128; ++n) { reals[n + 128] = TINYSCENE_DEQUANTIZE(n); }
}
int32_t best(const int8_t *logits);
int32_t best(const int8_t *logits) { return tinyscene_best(logits); }
int32_t percent(const int8_t *logits, int32_t label);
int32_t percent(const int8_t *logits, int32_t label) { return tinyscene_percent(logits, label); }
"""


def test_the_configurations_arithmetic(
    facts: Facts, made: Bundle, tmp_path: Path, rng: np.random.Generator
) -> None:
    import ctypes

    folder = written(made, tmp_path)
    (folder / "arithmetic.c").write_text(ARITHMETIC)
    compile_c(folder, ["arithmetic.c"], "a.so", "-O2", "-Isrc", "-shared", "-fPIC")
    library = ctypes.CDLL(str(folder / "a.so"))

    def pointer(x: np.ndarray) -> ctypes.c_void_p:
        return x.ctypes.data_as(ctypes.c_void_p)

    grid = Quantization((facts.input.scale,), (facts.input.zero_point,))
    ties = np.float32(facts.input.scale) * (np.arange(-300, 300) + np.float32(0.5))
    spread = np.concatenate([ties, 20 * rng.standard_normal(100_000), [0, 1e30, -1e30]])
    x = np.ascontiguousarray(np.append(spread, [np.inf, -np.inf]), np.float32)
    codes = np.empty(len(x), np.int8)
    library.quantize(pointer(x), pointer(codes), len(x))
    np.testing.assert_array_equal(codes, quantize(x, grid))

    output = Quantization((facts.output.scale,), (facts.output.zero_point,))
    reals = np.empty(256, np.float32)
    library.dequantize(pointer(reals))
    np.testing.assert_array_equal(reals, dequantize(np.arange(-128, 128).astype(np.int8), output))

    drawn = rng.integers(-128, 128, (500, len(facts.labels)), dtype=np.int8)
    drawn[:100] //= 8  # near one another
    drawn[0] = 5
    for logits, shares in zip(drawn, probabilities(drawn, output), strict=True):
        assert library.best(pointer(logits)) == int(logits.argmax())
        for label, share in enumerate(shares):
            assert abs(library.percent(pointer(logits), label) - 100 * share) <= 0.51


def test_stated_ram_and_flash_are_those_of_the_compiler(made: Bundle, tmp_path: Path) -> None:
    """RAM by the self-test's own assertions, and flash: read-only data of the objects."""
    folder = written(made, tmp_path)
    stated = made.manifest["flash_bytes"]
    for source, amount in (
        ("tinyscene_model", "constants_of_the_network"),
        ("tinyscene_frontend", "tables_of_the_front_end"),
    ):
        compile_c(folder, [f"src/{source}.c"], f"{source}.o", "-Os", "-c", "-Isrc")
        sections = run(tool("objdump"), "-h", f"{source}.o", cwd=folder)
        sizes = re.findall(r"^ *\d+ (\.rodata|\.data\.rel\.ro)\S* +([0-9a-f]+)", sections, re.M)
        constants = sum(int(size, 16) for _, size in sizes)
        # Descriptions of the layers come to the arrays, and alignment.
        functions = len(
            re.findall(r"^static void ", (folder / f"src/{source}.c").read_text(), re.M)
        )
        assert 0 <= constants - stated[amount] < 200 * functions + 64, (source, sections)
    config = made.files["src/tinyscene_config.h"].decode()
    for name, key in (("NETWORK", "network"), ("FRONTEND", "front_end")):
        wrong = config.replace(
            f"TINYSCENE_{name}_RAM_BYTES {made.manifest['ram_bytes'][key]}",
            f"TINYSCENE_{name}_RAM_BYTES {made.manifest['ram_bytes'][key] - 1}",
        )
        assert wrong != config
        (folder / "src" / "tinyscene_config.h").write_text(wrong)
        command = [compiler(), "-fsyntax-only", "-Isrc", "src/tinyscene_self_test.c"]
        assert subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode
