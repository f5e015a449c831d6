"""The bundle for TFLite Micro: data, operators and arena are the model's, and its code runs."""

from __future__ import annotations

import os
import re
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from convert.bundle import arena
from convert.bundle.contents import Bundle, bundle
from convert.bundle.facts import Facts
from convert.bundle.tflite_micro import METHODS, methods
from firmware_ref.arch import PRESETS
from firmware_ref.errors import CheckFailedError, InputError
from firmware_ref.lowering import lower
from tests.convert.bundles import facts_of, run, tool, written
from tests.convert.host_c import compile_c
from tests.convert.members import SMALL, Converted
from tests.convert.tflm_stub import write_stub

CXX = ["-std=c++17", "-Wall", "-Wextra", "-Werror"]
TFLM_VARIABLE = "TFLM_DIR"


@pytest.fixture(scope="module")
def facts(small: Converted) -> Facts:
    return facts_of(small.checkpoint)


@pytest.fixture(scope="module")
def made(facts: Facts) -> Bundle:
    return bundle(facts, "tflite-micro")


def defined(text: str) -> dict[str, str]:
    """Macros without arguments, by name."""
    return dict(re.findall(r"^#define (\w+) (\S+)$", text, re.MULTILINE))


def test_the_source_holds_the_bytes_of_the_model(made: Bundle) -> None:
    text = made.files["src/model_data.cc"].decode()
    (body,) = re.findall(r"\{([^}]*)\}", text)
    data = bytes(int(number, 16) for number in re.findall(r"0x([0-9a-f]{2}),", body))
    assert data == made.files["model.tflite"] and "alignas(16)" in text


def test_the_headers_state_length_and_checksum(facts: Facts, made: Bundle) -> None:
    for name in ("model_data.h", "model_config.h"):
        values = defined(made.files[f"src/{name}"].decode())
        assert int(values["TINYSCENE_MODEL_BYTES"].removesuffix("u")) == len(facts.model)
        assert int(values["TINYSCENE_MODEL_CRC32"].removesuffix("u"), 16) == zlib.crc32(facts.model)


# Prints the length, the remainder of the address by 16 and a CRC-32 computed bit by bit.
MAIN = r"""
#include "model_config.h"
#include "model_data.h"
#include "model_data.h"
#include <cstdint>
#include <cstdio>
int main() {
  static_assert(sizeof tinyscene_model == TINYSCENE_MODEL_BYTES, "length");
  std::uint32_t crc = 0xffffffffu;
  for (unsigned char byte : tinyscene_model) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0u);
  }
  const auto address = reinterpret_cast<std::uintptr_t>(tinyscene_model);
  std::printf("%u %08x\n", static_cast<unsigned>(address % 16), ~crc);
}
"""
# Takes the linker's alignment away from whatever follows it.
ODD_BYTE = "extern const unsigned char odd_byte[]; const unsigned char odd_byte[] = {7};\n"


def test_the_data_lie_at_a_multiple_of_16(facts: Facts, made: Bundle, tmp_path: Path) -> None:
    folder = written(made, tmp_path)
    (folder / "odd.cc").write_text(ODD_BYTE)
    (folder / "check.cc").write_text(MAIN)
    sources = ["check.cc", "odd.cc", "src/model_data.cc"]
    run(tool("g++"), *CXX, "-Wpedantic", "-Isrc", *sources, "-o", "check", cwd=folder)
    assert run(folder / "check", cwd=folder).split() == ["0", f"{zlib.crc32(facts.model):08x}"]


def test_the_resolver_has_exactly_the_operators_of_the_flatbuffer(made: Bundle) -> None:
    """As the schema in TFLite Micro's own package reads them."""
    model = schema.Model.GetRootAs(made.files["model.tflite"])
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if name[0] != "_"}
    kinds = [
        names[model.OperatorCodes(n).BuiltinCode()] for n in range(model.OperatorCodesLength())
    ]
    text = made.files["src/op_resolver.h"].decode()
    added = re.findall(r"resolver\.(\w+)\(\)", text)
    assert sorted(added) == sorted(METHODS[kind] for kind in kinds)
    assert f"tflite::MicroMutableOpResolver<{len(kinds)}>;" in text
    assert made.manifest["model"]["operators"] == sorted(kinds)


def test_every_operator_of_the_family_has_a_method_and_no_other() -> None:
    family = [*PRESETS.values(), SMALL]
    family += [replace(network, res_norm=False) for network in family]
    family += [replace(network, first_res_norm="input") for network in family]
    kinds = {operator.kind for network in family for operator in lower(network).operators}
    assert kinds == set(METHODS)
    with pytest.raises(InputError, match="operators SOFTMAX are unknown"):
        methods(["ADD", "SOFTMAX"])


def test_the_stated_arena_suffices_and_16_bytes_less_than_the_least_do_not(made: Bundle) -> None:
    model = made.files["model.tflite"]
    values = defined(made.files["src/model_config.h"].decode())
    stated, least, margin = (
        int(values[f"TINYSCENE_ARENA_{name}BYTES"]) for name in ("", "LEAST_", "MARGIN_")
    )
    assert stated == least + margin and margin == arena.MARGIN_BYTES
    assert arena._attempt(model, stated) is not None
    assert arena._attempt(model, least) is not None
    assert arena._attempt(model, least - 16) is None
    listed = made.manifest["arena"]
    assert (listed["bytes"], listed["least_bytes"]) == (stated, least)
    assert listed["reused_bytes"] + listed["kept_bytes"] <= least


def test_the_least_arena_is_looked_for_upwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where preparing takes more than what is in use while running."""
    tried: list[int] = []

    def attempt(_: bytes, size: int) -> str | None:
        tried.append(size)
        said = "".join(f"Arena allocation {w} 1600 bytes\n" for w in ("total", "head", "tail"))
        return said if size >= 3_216 else None

    monkeypatch.setattr(arena, "_attempt", attempt)
    found = arena.measure(b"")
    assert found.least == 3_216 and found.bytes == 3_216 + arena.MARGIN_BYTES
    assert all(size % 16 == 0 for size in tried) and len(tried) < 20


def test_a_model_that_the_wheel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckFailedError, match=r"measuring the arena failed: .*TypeError"):
        arena.measure(b"\x00" * 64)
    monkeypatch.setattr(arena, "_attempt", lambda *_: None)
    with pytest.raises(CheckFailedError, match=r"tflite-micro .* cannot run the model"):
        arena.measure(b"\x00" * 64)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.1")
    with pytest.raises(InputError, match=r"found is 0\.1; pip install 'tflite-micro=="):
        arena.measure(b"")


@pytest.fixture(scope="module")
def program(
    facts: Facts, made: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """The bundle's folder with a stub of TFLite Micro, and what all programs link with."""
    folder = written(made, tmp_path_factory.mktemp("micro"))
    write_stub(bundle(facts, "c99"), folder / "stub")
    flags = ["-O2", "-c", "-Isrc"]
    compile_c(folder, ["src/tinyscene_frontend.c"], "frontend.o", *flags)
    compile_c(folder, ["stub/tinyscene_model.c"], "network.o", *flags)
    for source in ("src/model_data.cc", "stub/runs.cc"):
        run(tool("g++"), *CXX, *flags, "-Istub", source, cwd=folder)
    return folder, ["frontend.o", "network.o", "model_data.o", "runs.o"]


def test_self_test_passes_and_fails(program: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, objects = program
    flags = [*CXX, "-Isrc", "-Istub", "-DTINYSCENE_SELF_TEST_MAIN"]

    def tested(source: str) -> subprocess.CompletedProcess[str]:
        output = tmp_path / "self_test"
        run(tool("g++"), *flags, source, *objects, "-o", output, cwd=folder)
        return subprocess.run([output], capture_output=True, text=True, check=False)

    done = tested("src/self_test.cc")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"model crc32 (\w{8}), expected \1: PASS", lines[0])
    assert lines[-1] == "PASS: 1 window, bit for bit"
    failing = {**os.environ, "INVOKE_FAILS": "1"}
    command = [tmp_path / "self_test"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=failing)
    assert done.returncode == 1 and "Invoke: FAIL" in done.stdout
    # Another model than the header says, and another arena than it takes.
    (folder / "nudged.cc").write_text(
        '#include "model_config.h"\n#include "model_data.h"\n'
        "#undef TINYSCENE_MODEL_CRC32\n#define TINYSCENE_MODEL_CRC32 1u\n"
        '#include "src/self_test.cc"\n'
    )
    done = tested("nudged.cc")
    assert done.returncode == 1 and done.stdout.splitlines()[-1] == "FAIL: the model"
    (folder / "small.cc").write_text(
        '#include "model_config.h"\n#undef TINYSCENE_ARENA_BYTES\n'
        "#define TINYSCENE_ARENA_BYTES 1600\n"
        '#include "src/self_test.cc"\n'
    )
    done = tested("small.cc")
    assert done.returncode == 1 and "refuses the model" in done.stdout


def test_every_header_compiles_alone(program: tuple[Path, list[str]]) -> None:
    folder, _ = program
    for header in sorted((folder / "src").glob("*.h")):
        if header.name != "tinyscene_frontend_tables.h":  # for tinyscene_frontend.c alone
            flags = [*CXX, "-Isrc", "-Istub", "-fsyntax-only", "-x", "c++", "-"]
            text = f'#include "{header.name}"\n' * 2
            # A header's static data are for who includes it.
            more = ["-Wno-unused-variable"] if header.name == "golden.h" else []
            run(tool("g++"), *more, *flags, cwd=folder, stdin=text.encode())


def test_it_runs_on_tflite_micro_itself(made: Bundle, tmp_path: Path) -> None:
    if not (tree := os.environ.get(TFLM_VARIABLE)):
        pytest.skip(
            f"needs TFLite Micro: set {TFLM_VARIABLE} to a tree that its "
            "tensorflow/lite/micro/tools/project_generation/create_tflm_tree.py made"
        )
    folder = written(made, tmp_path / "bundle")
    build = ["-B", "build", f"-DTFLM_DIR={tree}"]
    run(tool("cmake", "cmake"), "-S", folder, *build, cwd=tmp_path)
    run(tool("cmake", "cmake"), "--build", "build", "-j2", cwd=tmp_path)
    assert "PASS" in run(tmp_path / "build" / "tinyscene_self_test", cwd=tmp_path)
