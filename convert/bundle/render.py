"""Templates of the bundle, and text that stays what it is in C, Markdown and HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

TEMPLATES = "c/templates"
# Numbers a line; of three characters, a sign and a comma the widest fill some 100 columns.
NUMBERS_A_LINE = 16
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
    return f"{np.float32(value)}f"


def numbers(values: Iterable[int] | np.ndarray) -> str:
    """Integers as the body of a C array, `NUMBERS_A_LINE` each line, indented."""
    words = [str(value) for value in np.asarray(values).reshape(-1).tolist()]
    lines = (words[at : at + NUMBERS_A_LINE] for at in range(0, len(words), NUMBERS_A_LINE))
    return "\n".join(f"    {', '.join(line)}," for line in lines)


def coded(text: str) -> Markup:
    """Our own words as HTML, what stands between backticks as code."""
    return Markup(CODE.sub(r"<code>\1</code>", str(escape(text))))
