"""Templates of the bundle, and text that stays what it is in C, Markdown and HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

TEMPLATES = "c/templates"
LINE_COLUMNS = 100
# Punctuation that is itself within a C string; `?` could begin a trigraph.
PLAIN = re.compile(r"[ -~]")
ESCAPED = {'"': '\\"', "\\": "\\\\", "?": "\\?"}
CODE = re.compile(r"`([^`]*)`")


def rendered(template: str, values: Mapping[str, Any]) -> str:
    """A template filled in; HTML is escaped, and an unknown name an error."""
    environment = Environment(
        loader=PackageLoader("convert", TEMPLATES),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["c_string"] = c_string
    environment.filters["numbers"] = numbers
    environment.filters["hex"] = lambda value: f"0x{value:08x}u"
    environment.filters["float"] = c_float
    environment.filters["coded"] = coded
    return environment.get_template(template).render(values)


def c_string(text: str) -> str:
    """A C string literal of the text in UTF-8, of ASCII alone.

    Octal escapes end after three digits, whatever follows them; hexadecimal ones do not.
    """
    characters = []
    for byte in text.encode("utf-8", "backslashreplace"):
        character = chr(byte)
        if PLAIN.fullmatch(character):
            characters.append(ESCAPED.get(character, character))
        else:
            characters.append(f"\\{byte:03o}")
    return f'"{"".join(characters)}"'


def c_float(value: float) -> str:
    """The shortest decimal literal of a float32 that reads back as the same."""
    return f"{np.float32(value)!s}f"


def numbers(values: Iterable[int] | np.ndarray) -> str:
    """Integers as the body of a C array, in indented lines of at most `LINE_COLUMNS`."""
    lines, line = [], "   "
    for value in np.asarray(values).reshape(-1).tolist():
        word = f" {value},"
        if len(line) + len(word) > LINE_COLUMNS:
            lines.append(line)
            line = "   "
        line += word
    return "\n".join([*lines, line])


def coded(text: str) -> Markup:
    """Our own words as HTML, what stands between backticks as code."""
    return Markup(CODE.sub(r"<code>\1</code>", str(escape(text))))
