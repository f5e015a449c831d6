"""The files for firmware: the C data are the model, compile without a warning, and are aligned."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import subprocess
import zlib
from collections import Counter
from pathlib import Path

import pytest

from budgets.count import count_graph
from budgets.lines import total_lines
from convert.bundle import write_bundle
from convert.pipeline import Conversion
from firmware_ref.arch import Network, layers
from firmware_ref.errors import InputError
from firmware_ref.graph import parse
from tests.convert.members import Converted
from train import qat_checkpoint

FILES = ["manifest.json", "model.tflite", "model_data.cc", "model_data.h"]
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
# Prints the length, the remainder of the address by 16 and a CRC-32 computed bit by bit.
MAIN = r"""
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
  std::printf("%zu %u %08x %08x\n", sizeof tinyscene_model,
              static_cast<unsigned>(address % 16), ~crc, TINYSCENE_MODEL_CRC32);
}
"""
# Takes the linker's alignment away from whatever follows it.
ODD_BYTE = "extern const unsigned char odd_byte[]; const unsigned char odd_byte[] = {7};\n"


@pytest.fixture(scope="module")
def compiler() -> str:
    """A C++ compiler."""
    found = shutil.which("g++")
    if found is None:
        pytest.skip("needs g++ to compile the bundle")
    return found


def test_the_folder_holds_the_bundle_and_nothing_else(converted: Converted) -> None:
    assert sorted(path.name for path in converted.folder.iterdir()) == FILES


def numbers(text: str) -> bytes:
    """The bytes of the array, from the source text."""
    (body,) = re.findall(r"\{([^}]*)\}", text)
    return bytes(int(number, 16) for number in re.findall(r"0x([0-9a-f]{2}),", body))


def test_the_source_holds_the_bytes_of_the_model(converted: Converted) -> None:
    text = (converted.folder / "model_data.cc").read_text()
    assert numbers(text) == converted.model
    assert "alignas(16)" in text
    nudged = text.replace("0x54,", "0x55,", 1)  # the T of the identifier TFL3
    assert nudged != text and numbers(nudged) != converted.model


def test_the_header_states_length_and_checksum(converted: Converted) -> None:
    text = (converted.folder / "model_data.h").read_text()
    defined = dict(re.findall(r"^#define (\w+) (\w+)$", text, re.MULTILINE))
    assert int(defined["TINYSCENE_MODEL_BYTES"].removesuffix("u")) == len(converted.model)
    crc = int(defined["TINYSCENE_MODEL_CRC32"].removesuffix("u"), 16)
    assert crc == zlib.crc32(converted.model)


def build(compiler: str, folder: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Compile the bundle in ``folder`` into a program, and run that."""
    (tmp_path / "main.cc").write_text(MAIN)
    (tmp_path / "odd.cc").write_text(ODD_BYTE)
    program = tmp_path / "program"
    sources = [tmp_path / "main.cc", tmp_path / "odd.cc", folder / "model_data.cc"]
    subprocess.run([compiler, *FLAGS, f"-I{folder}", *sources, "-o", program], check=True)
    return subprocess.run([program], check=True, capture_output=True, text=True)


def test_it_compiles_and_lies_at_a_multiple_of_16(
    converted: Converted, compiler: str, tmp_path: Path
) -> None:
    length, remainder, computed, stated = build(compiler, converted.folder, tmp_path).stdout.split()
    assert int(length) == len(converted.model) and int(remainder) == 0
    assert computed == stated == f"{zlib.crc32(converted.model):08x}"


def test_a_changed_byte_gives_another_checksum(
    small: Converted, compiler: str, tmp_path: Path
) -> None:
    for name in ("model_data.h", "model_data.cc"):
        shutil.copy(small.folder / name, tmp_path)
    source = tmp_path / "model_data.cc"
    source.write_text(source.read_text().replace("0x54,", "0x55,", 1))
    _, _, computed, stated = build(compiler, tmp_path, tmp_path).stdout.split()
    assert computed != stated == f"{zlib.crc32(small.model):08x}"


def test_the_manifest_agrees_with_the_model(converted: Converted) -> None:
    manifest = json.loads((converted.folder / "manifest.json").read_text())
    model, graph = manifest["model"], parse(converted.model)
    assert manifest["schema_version"] == 1
    assert model["bytes"] == len(converted.model)
    assert model["sha256"] == hashlib.sha256(converted.model).hexdigest()
    assert model["crc32"] == f"{zlib.crc32(converted.model):08x}"
    activations = converted.manifest()["activations"]
    for key, (index,) in (("input", graph.inputs), ("output", graph.outputs)):
        tensor = graph.tensors[index]
        assert model[key] == {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "dtype": "int8",
            **activations[tensor.name],
        }
    assert set(model["operators"]) == {operator.kind for operator in graph.operators}
    assert model["operators"] == sorted(model["operators"])
    trained = sum(t.size for t in converted.tensors().values())
    weights, macs = given_means(converted)
    assert model["parameters"] == trained + weights
    network = Network.from_dict(converted.manifest()["network"])
    convolutions = sum(layer.multiply_accumulates for layer in layers(network))
    assert model["multiply_accumulates"] == convolutions + macs
    for key in ("labels", "features", "input_normalization", "network"):
        assert manifest[key] == converted.manifest()[key]
    assert set(manifest["converted_with"]) == {"onnx2tf", "tensorflow", "onnx", "torch"}


def given_means(converted: Converted) -> tuple[int, int]:
    """Weights with their biases, and MACs, of convolutions that are the means of ResNorms.

    Each ResNorm has two means of a map (F, T, C): C weights and a bias over channels, which give
    (F, T), then T weights and a bias over time.
    """
    weights = macs = 0
    for layer in layers(Network.from_dict(converted.manifest()["network"])):
        if layer.kind == "res_norm":
            channels, bands, frames = layer.output_shape
            weights += 2 * (channels + 1 + frames + 1)
            macs += 2 * (bands * frames * channels + bands * frames)
    return weights, macs


def test_the_budget_counts_a_shared_constant_at_each_use(converted: Converted) -> None:
    """What the budget has over the manifest: the means' weights again, and lambda left out."""
    manifest = json.loads((converted.folder / "manifest.json").read_text())["model"]
    graph = parse(converted.model)
    uses = Counter(i for operator in graph.operators for i in operator.inputs if i != -1)
    again = sum(
        (uses[index] - 1) * math.prod(tensor.shape)
        for index, tensor in enumerate(graph.tensors)
        if tensor.data is not None and tensor.dtype == "int8" and tensor.name != "res_norm.lambda"
    )
    count = count_graph(graph, "model.tflite", len(converted.model))
    assert count.sizes["weights"] == manifest["bytes_by_part"]["weights"] - 1 + again
    assert again > 0
    (line,) = (line for line in total_lines(count, 100.0) if line.startswith("bytes: "))
    assert line.endswith("(a constant counts at each use; a file stores it once)")


def test_the_reports_figures(report: Converted) -> None:
    """The network's own figure, and what the means of its ResNorms add on the device."""
    model = json.loads((report.folder / "manifest.json").read_text())["model"]
    _, macs = given_means(report)
    assert model["multiply_accumulates"] - macs == 8_637_000
    assert 0 < macs < 0.02 * 8_637_000


def again(converted: Converted) -> Conversion:
    """The conversion, put together from its files."""
    saved, _ = qat_checkpoint.load(converted.checkpoint)
    graph = parse(converted.model)
    count = count_graph(graph, "model.tflite", len(converted.model))
    return Conversion(converted.model, graph, count, saved)


def test_writing_again_gives_the_same_bytes(small: Converted, tmp_path: Path) -> None:
    written = write_bundle(again(small), tmp_path / "a" / "folder")
    assert sorted(path.name for path in written) == FILES
    for path in written:
        assert path.parent == tmp_path / "a" / "folder"
        assert path.read_bytes() == (small.folder / path.name).read_bytes()


def test_an_older_bundle_is_replaced(small: Converted, tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"older")
    (tmp_path / "kept.txt").write_text("another's")
    write_bundle(again(small), tmp_path)
    assert (tmp_path / "model.tflite").read_bytes() == small.model
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "kept.txt"])


def test_a_file_in_the_folders_place_is_refused(small: Converted, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="cannot be written"):
        write_bundle(again(small), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "no folder"
