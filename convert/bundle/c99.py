"""``--target c99``: network and front end as plain C, no library."""

from __future__ import annotations

from convert.bundle.facts import Facts
from convert.bundle.parts import Amount, Define, Names, Parts, source
from convert.bundle.shared import (
    FEED,
    FRONTEND_EQUAL,
    builds,
    constant_bytes,
    frontend_files,
    own_files,
)
from convert.c99.generate import HEADER_FILE, KERNELS_FILE, SOURCE_FILE, generate

TARGET = "c99"
NAMES = Names(
    config="tinyscene_config.h",
    golden="tinyscene_golden.h",
    self_test_header="tinyscene_self_test.h",
    self_test="tinyscene_self_test.c",
    main="main.c",
)
NETWORK = {
    SOURCE_FILE: "the network: constants, and one function a layer",
    HEADER_FILE: "what to call of it",
    KERNELS_FILE: "the arithmetic of its layers",
}
EQUAL = (
    (
        "src/tinyscene_model.c",
        "model.tflite in those interpreters",
        "the self-test, for logits; ./scripts/emulate, for every layer on emulated Cortex-M",
    ),
    FRONTEND_EQUAL,
)
STEPS = (
    "Add `src/` to your build: its `.c` files are C99 and include nothing but `stdint.h` and "
    "`stdbool.h`. With CMake `add_subdirectory` this folder and link `tinyscene`; for Arduino it "
    "is a library, for Zephyr a module with `CONFIG_TINYSCENE=y`.",
    "Run `tinyscene_self_test` on your board, and go on only after `PASS`. On this machine: "
    "`cmake -B build && cmake --build build && ctest --test-dir build`.",
    f"{FEED}, `tinyscene_input(&memory)`.",
    "Call `tinyscene_run(&memory, logits)`, and read the result by `tinyscene_best`, "
    "`tinyscene_percent` and `TINYSCENE_LABELS`. `main.c` does all of this; it needs a "
    "`board_read_hop` of yours.",
    "On a core with DSP or MVE instructions define `TINYSCENE_SIMD` to 1: the same bits in fewer "
    "instructions. Run the self-test again after every change of compiler or flags.",
)


def parts(facts: Facts) -> Parts:
    """The bundle's files; `InputError` for a network that the generator does not know."""
    generated = generate(facts.conversion.graph)
    network = [source(name, generated.files[name], says) for name, says in NETWORK.items()]
    frontend = frontend_files(facts.conversion.graph)
    ram = (
        Define("TINYSCENE_NETWORK_RAM_BYTES", generated.memory_bytes, "tinyscene_memory"),
        Define("TINYSCENE_FRONTEND_RAM_BYTES", facts.frontend_ram_bytes, "tinyscene_frontend"),
    )
    sources = [*network, *frontend, *own_files(TARGET, facts, NAMES, ram)]
    return Parts(
        target=TARGET,
        files=(*sources, *builds(TARGET, facts, NAMES, sources)),
        ram=(
            Amount("network", generated.memory_bytes),
            Amount("front end", facts.frontend_ram_bytes),
        ),
        flash=(
            Amount("constants of the network", constant_bytes(network)),
            Amount("tables of the front end", constant_bytes(frontend)),
        ),
        code="code, 10 to 25 KB on Cortex-M, which ./scripts/emulate measures",
        equal=EQUAL,
        steps=STEPS,
    )
