"""Names: of layers, each one of its own whatever a file calls it, and cut to the room there is."""

from __future__ import annotations

from collections import Counter

from firmware_ref.graph import Graph


def layer_names(graph: Graph) -> tuple[str, ...]:
    """A name for each operator in order, no two the same: its first output's, where it has one.

    A third operator without a name is ``#3 CONV_2D``, after its place; of layers that share one,
    the second is ``name#2``, or the next number that is no layer's name already.
    """
    given = [
        name if (name := graph.name(operator)).strip() else f"#{place} {operator.kind}"
        for place, operator in enumerate(graph.operators, 1)
    ]
    taken, numbers = set(given), Counter[str]()
    names = []
    for name in given:
        numbers[name] += 1
        found = name
        if numbers[name] > 1:
            while (found := f"{name}#{numbers[name]}") in taken:
                numbers[name] += 1
            taken.add(found)
        names.append(found)
    return tuple(names)


def shortened(text: str, most: int, gap: str = "...") -> str:
    """``text`` in ``most`` characters, without its middle: both ends tell layers apart."""
    if len(text) <= most:
        return text
    tail = (most - len(gap)) // 2
    return f"{text[: most - len(gap) - tail]}{gap}{text[len(text) - tail :]}"
