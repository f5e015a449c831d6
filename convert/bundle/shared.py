"""Files that every target has: front end, configuration, self-test, example, build files."""

from __future__ import annotations

import re
from collections.abc import Sequence

from convert import frontend_tables
from convert.bundle.facts import Facts
from convert.bundle.parts import SOURCE_FOLDER, Define, File, Names, source
from convert.bundle.render import rendered
from firmware_ref.features import FeatureDefinition
from firmware_ref.fixed_frontend import FixedFrontend
from firmware_ref.graph import Graph

ARRAY = re.compile(r"^static const u?int(8|16|32|64)_t \w+\[(\d+)\]", re.MULTILINE)
# By path: template and purpose.
BUILDS = {
    "CMakeLists.txt": ("CMakeLists.txt.j2", "CMake: the library, self-test and classifier"),
    "library.properties": ("library.properties.j2", "Arduino: this folder is a library"),
    "examples/SelfTest/SelfTest.ino": ("SelfTest.ino.j2", "Arduino: the self-test"),
    "examples/Classify/Classify.ino": ("Classify.ino.j2", "Arduino: says what it hears"),
    "zephyr/module.yml": ("zephyr_module.yml", "Zephyr: this folder is a module"),
    "zephyr/CMakeLists.txt": ("zephyr_CMakeLists.txt.j2", "Zephyr: its sources"),
    "zephyr/Kconfig": ("zephyr_Kconfig.j2", "Zephyr: CONFIG_TINYSCENE"),
}
_SOUND = FeatureDefinition()
FEED = (
    f"Feed the front end, mono int16 PCM at {_SOUND.sample_rate_hz:,} Hz: "
    "`tinyscene_frontend_begin`, then `tinyscene_frontend_push` for each of "
    f"{_SOUND.clip_samples // _SOUND.hop_samples} hops of {_SOUND.hop_samples:,} samples, then "
    f"`tinyscene_frontend_finish` with the last {_SOUND.clip_samples % _SOUND.hop_samples} samples "
    "and the network's input"
)
FRONTEND_EQUAL = (
    "src/tinyscene_frontend.c",
    "firmware_ref.fixed_frontend",
    "the self-test, on its windows; the project's tests, for any samples",
)


def frontend_files(graph: Graph) -> list[File]:
    """The fixed-point front end in C, with a model's tables."""
    contents = frontend_tables.frontend_files(FixedFrontend.of_graph(graph))
    says = dict.fromkeys(contents, "the front end: samples to the network's input")
    says[frontend_tables.TABLES_FILE] = "its tables, for this model"
    return [source(name, content, says[name]) for name, content in contents.items()]


def constant_bytes(files: Sequence[File]) -> int:
    """Bytes of the constant arrays that our generated C defines."""
    texts = (file.content.decode() for file in files)
    return sum(int(bits) // 8 * int(n) for text in texts for bits, n in ARRAY.findall(text))


def own_files(target: str, facts: Facts, names: Names, ram: Sequence[Define]) -> list[File]:
    """Configuration and self-test."""
    values = {"target": target, "facts": facts, "names": names, "ram": ram}

    def made(name: str, template: str, says: str) -> File:
        guard = re.sub(r"[^A-Z0-9]", "_", f"{name}_".upper())
        return source(name, rendered(template, {**values, "guard": guard}), says)

    return [
        made(names.config, "config.h.j2", "labels, scales, sizes, hashes"),
        made(names.self_test_header, "self_test.h.j2", "the self-test"),
        made(names.self_test, "self_test.j2", "the self-test"),
        made(names.golden, "golden.h.j2", "its windows of sound"),
    ]


def builds(target: str, facts: Facts, names: Names, sources: Sequence[File]) -> list[File]:
    """The classifier, and the files by which CMake, Arduino and Zephyr build the ``sources``."""
    values = {
        "target": target,
        "facts": facts,
        "names": names,
        "folder": SOURCE_FOLDER,
        "sources": [file.path for file in sources if file.path.endswith((".c", ".cc"))],
        "hops": facts.features.clip_samples // facts.features.hop_samples,
        "tail": facts.features.clip_samples % facts.features.hop_samples,
    }
    templates = {names.main: ("main.j2", "an example: classifies a stream"), **BUILDS}
    return [
        File(path, rendered(template, values).encode(), says)
        for path, (template, says) in templates.items()
    ]
