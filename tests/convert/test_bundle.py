"""Every bundle: its files are what the manifest says, of one conversion, and always the same."""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from budgets.count import count_graph
from budgets.lines import total_lines
from convert.__main__ import TARGETS as NAMED
from convert.bundle.contents import MANIFEST_FILE, TARGETS, Bundle, bundle
from convert.bundle.facts import Facts
from convert.bundle.windows import prove
from convert.golden import made_seconds
from firmware_ref.arch import Network, layers
from firmware_ref.fixed_frontend import FixedFrontend
from firmware_ref.graph import parse
from firmware_ref.run import Interpreter
from tests.convert.bundles import conversion, facts_of
from tests.convert.members import Converted

SHARED = {
    *("model.tflite", "manifest.json", "REPORT.md", "REPORT.html"),
    *("CMakeLists.txt", "library.properties"),
    *("examples/SelfTest/SelfTest.ino", "examples/Classify/Classify.ino"),
    *("zephyr/module.yml", "zephyr/CMakeLists.txt", "zephyr/Kconfig"),
    *("src/tinyscene_frontend.c", "src/tinyscene_frontend.h", "src/tinyscene_frontend_tables.h"),
}
OWN = {
    "c99": {
        *("main.c", "src/tinyscene_model.c", "src/tinyscene_model.h", "src/tinyscene_kernels.h"),
        *("src/tinyscene_config.h", "src/tinyscene_golden.h"),
        *("src/tinyscene_self_test.c", "src/tinyscene_self_test.h"),
    },
    "tflite-micro": {
        *("main.cc", "src/model_data.cc", "src/model_data.h", "src/model_config.h"),
        *("src/op_resolver.h", "src/tinyscene_interpreter.h", "src/golden.h"),
        *("src/self_test.cc", "src/self_test.h"),
    },
}


@pytest.fixture(scope="module")
def facts(small: Converted) -> Facts:
    return facts_of(small.checkpoint)


@pytest.fixture(scope="module", params=OWN)
def made(request: pytest.FixtureRequest, facts: Facts) -> Bundle:
    return bundle(facts, request.param)


def test_the_command_knows_the_targets() -> None:
    assert tuple(TARGETS) == NAMED == tuple(OWN)


def test_a_bundle_holds_these_files_and_no_others(made: Bundle) -> None:
    assert set(made.files) == SHARED | OWN[made.parts.target]


def test_the_command_writes_these_very_bytes(small: Converted) -> None:
    made = bundle(prove(conversion(small.checkpoint), made_seconds()), "tflite-micro")
    found = {
        str(path.relative_to(small.folder)): path.read_bytes()
        for path in small.folder.rglob("*")
        if path.is_file()
    }
    assert found == dict(made.files)


def test_the_manifest_lists_every_other_file_with_its_hash(made: Bundle) -> None:
    values = json.loads(made.files[MANIFEST_FILE])
    assert values == made.manifest and values["target"] == made.parts.target
    assert list(made.files)[-1] == MANIFEST_FILE
    assert values["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in made.files.items()
        if name != MANIFEST_FILE
    }


def test_the_same_checkpoint_gives_the_same_bytes(
    small: Converted, made: Bundle, tmp_path: Path
) -> None:
    """From another folder, too: no path is in a file, nor a date."""
    copy = tmp_path / "elsewhere" / "other name.safetensors"
    copy.parent.mkdir()
    copy.write_bytes(small.checkpoint.read_bytes())
    assert bundle(facts_of(copy), made.parts.target).files == made.files
    for name, content in made.files.items():
        assert b"/tmp" not in content and str(Path.cwd()).encode() not in content, name
        if name != "model.tflite":
            assert not re.search(rb"\b20[2-4]\d-[01]\d-[0-3]\d\b", content), name


def test_all_but_the_model_is_text_of_one_kind(made: Bundle) -> None:
    for name, content in made.files.items():
        if name == "model.tflite":
            continue
        text = content.decode("utf-8")
        assert text.endswith("\n") and not text.endswith("\n\n"), name
        assert "\r" not in text and not re.search(r"[ \t]+$", text, re.MULTILINE), name
        if not name.startswith("REPORT"):
            assert text.isascii(), name


def test_comments_and_code_keep_to_a_hundred_columns(made: Bundle) -> None:
    for name, content in made.files.items():
        if name.endswith((".c", ".cc", ".h", ".ino", "CMakeLists.txt")):
            long = [line for line in content.decode().splitlines() if len(line) > 104]
            assert not long, (name, long[:3])


def test_the_manifest_agrees_with_the_model(converted: Converted) -> None:
    manifest = json.loads((converted.folder / "manifest.json").read_text())
    model, graph = manifest["model"], parse(converted.model)
    assert manifest["schema_version"] == 2
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


def test_the_manifest_says_what_was_verified(converted: Converted) -> None:
    """And the golden windows are the front end's and the interpreter's."""
    manifest = json.loads((converted.folder / "manifest.json").read_text())
    verified = manifest["verified"]
    assert verified["ok"] and verified["inputs"] == len(manifest["goldens"]) == 3
    assert {oracle["name"] for oracle in verified["oracles"]} == {"tflite-runtime", "tflite-micro"}
    assert all(oracle["mismatches"] == 0 < oracle["values"] for oracle in verified["oracles"])
    graph = parse(converted.model)
    for golden, (name, sound) in zip(manifest["goldens"], made_seconds(), strict=True):
        samples = np.clip(np.rint(sound.astype(np.float64) * 32768), -32768, 32767)
        codes = FixedFrontend.of_graph(graph).inputs(samples.astype(np.int16))
        assert golden["name"] == name
        assert golden["input_crc32"] == f"{zlib.crc32(codes.tobytes()):08x}"
        assert golden["logits"] == Interpreter(graph).run(codes[None]).reshape(-1).tolist()


def test_a_checkpoint_that_names_its_data_says_so(facts: Facts) -> None:
    saved = facts.conversion.checkpoint
    data = {"name": "My recordings", "test_fold": 3, "selected_on_test": True}
    known = replace(saved, manifest={**saved.manifest, "dataset": data})
    made = bundle(replace(facts, conversion=replace(facts.conversion, checkpoint=known)), "c99")
    assert made.manifest["dataset"] == data
    text = made.files["REPORT.md"].decode()
    assert "| trained on | My recordings |" in text and "--fold 3`" in text
    assert "Its epoch was chosen on the very recordings of that fold" in text


def test_a_checkpoint_that_does_not_say_is_not_guessed_about(made: Bundle) -> None:
    assert made.manifest["dataset"]["name"] is None
    text = made.files["REPORT.md"].decode()
    assert "| trained on | not known |" in text and "Not known here" in text
    assert "--fold" not in text and "chosen on the very recordings" not in text
