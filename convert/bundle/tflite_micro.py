"""``--target tflite-micro``: the flatbuffer as C data, for TensorFlow Lite Micro."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from convert.bundle.arena import ALIGNMENT, MARGIN_BYTES, ORACLE, MeasuredArena, measure
from convert.bundle.facts import Facts
from convert.bundle.parts import Amount, Define, File, Names, Parts, source
from convert.bundle.render import rendered
from convert.bundle.shared import (
    FEED,
    FRONTEND_EQUAL,
    builds,
    constant_bytes,
    frontend_files,
    own_files,
)
from firmware_ref.errors import InputError

TARGET = "tflite-micro"
NAMES = Names(
    config="model_config.h",
    golden="golden.h",
    self_test_header="self_test.h",
    self_test="self_test.cc",
    main="main.cc",
)
BYTES_A_LINE = 12
# Methods of tflite::MicroMutableOpResolver, for every operator of `firmware_ref.lowering`.
METHODS = {
    "ADD": "AddAdd",
    "AVERAGE_POOL_2D": "AddAveragePool2D",
    "CONCATENATION": "AddConcatenation",
    "CONV_2D": "AddConv2D",
    "DEPTHWISE_CONV_2D": "AddDepthwiseConv2D",
    "LOGISTIC": "AddLogistic",
    "MAX_POOL_2D": "AddMaxPool2D",
    "MUL": "AddMul",
    "PAD": "AddPad",
    "RESHAPE": "AddReshape",
    "RSQRT": "AddRsqrt",
    "SLICE": "AddSlice",
    "SUB": "AddSub",
}
EQUAL = (
    (
        "model.tflite in TFLite Micro on a device, its own kernels",
        "model.tflite in those interpreters",
        "the same source; the self-test, for logits",
    ),
    (
        "model.tflite in TFLite Micro, optimised kernels (CMSIS-NN and others)",
        "not promised by them",
        "the self-test, on your board",
    ),
    FRONTEND_EQUAL,
)
STEPS = (
    "Make a tree of TFLite Micro: in its checkout, `python3 tensorflow/lite/micro/tools/"
    "project_generation/create_tflm_tree.py TFLM_DIR`. Zephyr has it as a module; for Arduino "
    "install a library of it.",
    "Add `src/` to your build, with TFLite Micro's headers. With CMake `add_subdirectory` this "
    "folder, give `-DTFLM_DIR=...` or a target `tflm` of yours, and link `tinyscene`; for Arduino "
    "it is a library, for Zephyr a module with `CONFIG_TINYSCENE=y`.",
    "Run `tinyscene_self_test` on your board, and go on only after `PASS`. On this machine: "
    "`cmake -B build -DTFLM_DIR=... && cmake --build build && ctest --test-dir build`.",
    f"{FEED}, `interpreter->input(0)->data.int8`.",
    "Call `Invoke`, and read the result by `tinyscene_best`, `tinyscene_percent` and "
    "`TINYSCENE_LABELS`. `main.cc` does all of this; it needs a `board_read_hop` of yours. Run the "
    "self-test again after every change of kernels, compiler or flags.",
)


def parts(facts: Facts) -> Parts:
    """The bundle's files; the arena is measured."""
    arena = measure(facts.model)
    frontend = frontend_files(facts.conversion.graph)
    own = own_files(TARGET, facts, NAMES, _defines(facts, arena))
    sources = [*_network(facts), *frontend, *own]
    return Parts(
        target=TARGET,
        files=(*sources, *builds(TARGET, facts, NAMES, sources)),
        ram=(
            Amount("tensor arena", arena.bytes),
            Amount("front end", facts.frontend_ram_bytes),
        ),
        flash=(
            Amount("flatbuffer", len(facts.model)),
            Amount("tables of the front end", constant_bytes(frontend)),
        ),
        code="code, of TFLite Micro and of the front end",
        equal=EQUAL,
        steps=STEPS,
        more={
            "arena": {
                "bytes": arena.bytes,
                "least_bytes": arena.least,
                "margin_bytes": MARGIN_BYTES,
                "reused_bytes": arena.head,
                "kept_bytes": arena.tail,
                "measured_with": f"{ORACLE.name} {ORACLE.version}",
            }
        },
    )


def methods(operators: Sequence[str]) -> list[str]:
    """How a resolver is told of each kind of operator."""
    if unknown := sorted(set(operators) - set(METHODS)):
        raise InputError(f"operators {', '.join(unknown)} are unknown to --target {TARGET}")
    return [METHODS[kind] for kind in operators]


def _defines(facts: Facts, arena: MeasuredArena) -> list[Define]:
    measured = f"in {ORACLE.name} {ORACLE.version}, 64 bits; {ALIGNMENT} less fails"
    return [
        Define("TINYSCENE_ARENA_LEAST_BYTES", arena.least, measured),
        Define("TINYSCENE_ARENA_MARGIN_BYTES", MARGIN_BYTES, "for buffers of optimised kernels"),
        Define("TINYSCENE_ARENA_BYTES", arena.bytes, "both: the tensor arena"),
        Define("TINYSCENE_FRONTEND_RAM_BYTES", facts.frontend_ram_bytes, "tinyscene_frontend"),
    ]


def _network(facts: Facts) -> list[File]:
    """The flatbuffer as C data, and the operators it needs."""
    names = {
        "model_data.h": ("model_data.h.j2", "the flatbuffer"),
        "model_data.cc": ("model_data.cc.j2", "its bytes, 16-byte aligned"),
        "op_resolver.h": ("op_resolver.h.j2", "its operators"),
        "tinyscene_interpreter.h": (
            "tinyscene_interpreter.h.j2",
            "TFLite Micro's interpreter of it, with its arena",
        ),
    }
    values = {
        "facts": facts,
        "operators": methods(facts.operators),
        "lines": "\n".join(_lines(facts.model)),
    }
    return [
        source(name, rendered(template, values), says) for name, (template, says) in names.items()
    ]


def _lines(model: bytes) -> Iterator[str]:
    for start in range(0, len(model), BYTES_A_LINE):
        yield "    " + " ".join(f"0x{byte:02x}," for byte in model[start : start + BYTES_A_LINE])
