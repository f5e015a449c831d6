"""The generated C against `firmware_ref` and TFLite Micro: every tensor in memory, bit for bit."""

from __future__ import annotations

import itertools
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert.c99.generate import SOURCE_FILE, Generated, generate
from firmware_ref.arch import PRESETS, Network
from firmware_ref.errors import InputError
from firmware_ref.graph import Graph, parse
from firmware_ref.oracle import oracle, session
from firmware_ref.run import Interpreter
from tests.convert.host_c import HostNetwork, compile_c, compiler, mismatches
from tests.convert.members import SMALL
from tests.firmware_ref.build import network_graph, random_int8, write

# As far as undefined behaviour goes: overflow, shifts, alignment, reads outside an array.
SANITIZED = ("-fsanitize=undefined", "-fno-sanitize-recover")


def built(network: Network, seed: int = 0) -> Graph:
    """A network of random weights on scales that use the int8 range."""
    return parse(write(network_graph(network, np.random.default_rng(seed))))


def inputs(graph: Graph, count: int, rng: np.random.Generator) -> np.ndarray:
    return random_int8(rng, (count, *graph.tensors[graph.inputs[0]].shape[1:]))


def member(rng: np.random.Generator) -> Network:
    """A random member of the family, small enough to compute in a moment."""
    while True:
        stages = int(rng.integers(1, 4))
        pools = rng.integers(1, stages + 1, rng.integers(0, 3))
        try:
            return Network(
                name="member",
                stem_channels=int(rng.integers(1, 20)),
                widths=tuple(int(width) for width in rng.integers(1, 24, stages)),
                blocks=tuple(int(count) for count in rng.integers(1, 3, stages)),
                pool_after=tuple(sorted({int(stage) for stage in pools})),
                ssn_bands=int(rng.choice([1, 2, 4])),
                head_channels=None if rng.integers(2) else int(rng.integers(1, 40)),
                res_norm=bool(rng.integers(4)),
                first_res_norm=str(rng.choice(["input", "stem"])),
                classes=int(rng.integers(2, 12)),
                input_channels=int(rng.choice([1, 3])),
                input_bands=int(rng.choice([16, 32, 40])),
                input_frames=int(rng.integers(2, 45)),
            )
        except InputError:
            continue


@pytest.fixture(scope="module")
def small() -> Graph:
    return built(SMALL)


@pytest.mark.parametrize("network", [*PRESETS.values(), SMALL], ids=lambda network: network.name)
def test_presets_equal_firmware_ref(
    tmp_path: Path, rng: np.random.Generator, network: Network
) -> None:
    graph = built(network)
    x = inputs(graph, 2, rng)
    host = HostNetwork(generate(graph), tmp_path, *SANITIZED)
    assert mismatches(host, graph, x, Interpreter(graph).run_all(x)) == {}


@pytest.mark.parametrize("seed", range(12))
def test_random_members_equal_firmware_ref(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = built(member(rng), seed)
    x = inputs(graph, 2, rng)
    host = HostNetwork(generate(graph), tmp_path, *SANITIZED)
    assert mismatches(host, graph, x, Interpreter(graph).run_all(x)) == {}


def test_tflite_micro_gives_the_same(
    tmp_path: Path, rng: np.random.Generator, small: Graph
) -> None:
    data = write(small)
    run = session(oracle("tflite-micro"), data, small)
    host = HostNetwork(generate(small), tmp_path)
    for x in inputs(small, 3, rng):
        logits, seen = host.run(x, SMALL.classes)
        expected = run(x[None])
        np.testing.assert_array_equal(logits, expected[small.outputs[0]].reshape(-1))
        for index, values in seen.items():
            np.testing.assert_array_equal(values, expected[index].reshape(-1))


def test_one_nudged_weight_is_seen(tmp_path: Path, rng: np.random.Generator, small: Graph) -> None:
    generated = generate(small)
    text = generated.files[SOURCE_FILE]
    start = text.index("static const int8_t layer3_stage1_block1_frequency_conv_weights")
    found = re.compile(r"\n    (-?\d+),").search(text, start)
    assert found
    nudged = f"\n    {int(found[1]) + (1 if int(found[1]) < 100 else -1)},"
    files = {**generated.files, SOURCE_FILE: text[: found.start()] + nudged + text[found.end() :]}
    x = inputs(small, 2, rng)
    host = HostNetwork(replace(generated, files=files), tmp_path)
    found_at = mismatches(host, small, x, Interpreter(small).run_all(x))
    assert "stage1.block1.frequency_conv" in found_at and "stem.conv" not in found_at


def test_memory_is_clean_under_address_sanitizer(
    tmp_path: Path, rng: np.random.Generator, small: Graph
) -> None:
    """As a program of its own, whose memory the sanitizer watches on either side."""
    generated = generate(small)
    for name, text in generated.files.items():
        (tmp_path / name).write_text(text, encoding="ascii")
    x = inputs(small, 1, rng)[0]
    values = ", ".join(str(value) for value in x.reshape(-1).tolist())
    main = f"""
#include <stdio.h>
#include <stdlib.h>
#include "tinyscene_model.h"
static const int8_t input[TINYSCENE_INPUT_BYTES] = {{{values}}};
int main(void) {{
    tinyscene_memory *memory = malloc(sizeof *memory);
    int8_t logits[TINYSCENE_OUTPUTS];
    if (!memory) return 1;
    for (int n = 0; n < TINYSCENE_INPUT_BYTES; ++n) tinyscene_input(memory)[n] = input[n];
    tinyscene_run(memory, logits);
    for (int n = 0; n < TINYSCENE_OUTPUTS; ++n) printf("%d ", logits[n]);
    free(memory);
    return 0;
}}
"""
    (tmp_path / "main.c").write_text(main, encoding="ascii")
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover")
    compile_c(tmp_path, ["tinyscene_model.c", "main.c"], "program", *flags)
    done = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:2000]
    expected = Interpreter(small).run(x[None]).reshape(-1).tolist()
    assert [int(word) for word in done.stdout.split()] == expected


def _tensor(graph: Graph, index: int, **values: object) -> Graph:
    """The graph with one tensor changed."""
    tensors = list(graph.tensors)
    tensors[index] = replace(tensors[index], **values)
    return replace(graph, tensors=tuple(tensors))


def _channel(graph: Graph, layer: str, multiplier: float, weight: int, bias: int) -> Graph:
    """The graph with one multiplier, bias and value for all weights of a layer's first channel."""
    operator = next(o for o in graph.operators if graph.name(o) == layer)
    source, weights, biases = (graph.tensors[index] for index in operator.inputs)
    result = graph.tensors[operator.outputs[0]]
    assert weights.data is not None and biases.data is not None
    assert source.quantization and weights.quantization and result.quantization
    scale = result.quantization.scale[0] * multiplier / source.quantization.scale[0]
    scales = (scale, *weights.quantization.scale[1:])
    data, offsets = weights.data.copy(), biases.data.copy()
    data[(slice(None),) * 3 + (0,) if operator.kind == "DEPTHWISE_CONV_2D" else 0] = weight
    offsets[0] = bias
    quantization = replace(weights.quantization, scale=scales)
    changed = _tensor(graph, operator.inputs[1], data=data, quantization=quantization)
    return _tensor(changed, operator.inputs[2], data=offsets)


@pytest.mark.parametrize(
    ("multiplier", "weight", "bias"),
    [
        (1.5 * 2.0**-32, 127, 0),  # a shift by 31
        (40 * 2.0**-30, 0, 2**30),  # no weights: the scale is such that the bias is 2**30 steps
        (40 * 2.0**-30, 1, -(2**30)),
        (2.0**-27, 127, 1000),
        (2.0, 0, 2**20),  # beyond the last code
    ],
)
@pytest.mark.parametrize(
    "layer",
    [
        "stem.conv",
        "stage1.block1.expand",
        "stage1.block1.frequency_conv.band2",
        "stage1.block1.temporal_conv",
        "stage2.block1.project",
        "classifier",
    ],
)
def test_a_channel_of_one_code_is_generated_whatever_its_scale(
    tmp_path: Path,
    rng: np.random.Generator,
    small: Graph,
    layer: str,
    multiplier: float,
    weight: int,
    bias: int,
) -> None:
    graph = _channel(small, layer, multiplier, weight, bias)
    x = inputs(graph, 1, rng)
    host = HostNetwork(generate(graph), tmp_path, *SANITIZED)
    assert mismatches(host, graph, x, Interpreter(graph).run_all(x)) == {}


def test_one_function_a_layer_with_its_name(small: Graph) -> None:
    text = generate(small).files[SOURCE_FILE]
    functions = re.findall(r"^static void (\w+)\(", text, re.MULTILINE)
    first = ["layer0_stem_conv", "layer1_stem_res_norm", "layer2_stage1_block1_expand"]
    assert functions[:3] == first
    assert [re.split("_", name)[0] for name in functions] == [
        f"layer{number}" for number in range(len(functions))
    ]
    # Fused layers are named where they are computed.
    for operator in small.operators[:-1]:
        name = small.name(operator)
        if operator.kind not in ("PAD", "SLICE", "DEPTHWISE_CONV_2D"):
            assert name in text, name


def test_the_same_graph_gives_the_same_text(small: Graph) -> None:
    assert generate(small).files == generate(parse(write(small))).files


# Names that are no identifiers, that are others' (of C, of the kernels, of a function's own), and
# that the same identifier would stand for.
NAMES = (
    *("", " ", "1x1", "int", "tinyscene.run", "memory", "maps", "x", "ts_conv", "Identit\xe4t"),
    *("stem.conv", "stem_conv", "stem-conv", "stem.conv.weights", "layer0_stem_conv", "a??/" * 40),
)


def test_any_names_compile(tmp_path: Path, rng: np.random.Generator, small: Graph) -> None:
    operators = [operator.outputs[0] for operator in small.operators]
    of_functions = generate(small).traced
    assert len(of_functions) > len(NAMES)
    tensors = list(small.tensors)
    for index, name in zip([*of_functions, *operators], itertools.cycle(NAMES), strict=False):
        tensors[index] = replace(tensors[index], name=name)
    named = replace(small, tensors=tuple(tensors))
    x = inputs(named, 1, rng)
    host = HostNetwork(generate(named), tmp_path)
    assert mismatches(host, named, x, Interpreter(named).run_all(x)) == {}


SHORT_INT = """\
#include <stdint.h>
{define}
#include "tinyscene_kernels.h"
"""


def test_an_int_of_16_bits_is_refused_by_the_compiler(tmp_path: Path, small: Graph) -> None:
    kernels = generate(small).files["tinyscene_kernels.h"]
    (tmp_path / "tinyscene_kernels.h").write_text(kernels, encoding="ascii")
    command = [compiler(), "-std=c99", "-fsyntax-only", "short.c"]
    for define, fails in (("", False), ("#define int short", True)):
        (tmp_path / "short.c").write_text(SHORT_INT.format(define=define))
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert bool(done.returncode) == ("ts_int_has_32_bits" in done.stderr) == fails, done.stderr


def test_report_125k_needs_one_map_and_a_few_rows() -> None:
    """The largest map is 56,320 bytes; TFLite Micro's arena for this network is 217 KB."""
    generated = generate(built(PRESETS["report-125k"]))
    assert 56_320 < generated.memory_bytes <= 62_000


def test_a_name_cannot_leave_its_comment(small: Graph) -> None:
    hostile = '*/ int main; /* \n\x1b"'
    tensors = tuple(replace(tensor, name=f"{tensor.name}{hostile}") for tensor in small.tensors)
    text = generate(replace(small, tensors=tensors)).files[SOURCE_FILE]
    assert text.isascii() and "\x1b" not in text
    for comment in re.findall(r"/\*(.*?)\*/", text, re.DOTALL):
        first, *others = comment.splitlines()
        assert "/*" not in comment and all(line.startswith(" * ") for line in others), first
    assert "int main" not in re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def test_a_missing_compiler_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match="apt-get install gcc"):
        compiler()


def test_generated_names_its_files(small: Graph) -> None:
    generated = generate(small)
    assert isinstance(generated, Generated)
    assert set(generated.files) == {"tinyscene_kernels.h", "tinyscene_model.h", SOURCE_FILE}
