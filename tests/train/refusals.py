"""The one way in which bad input is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from firmware_ref.errors import InputError


def refused(call: Callable[[], Any], *parts: str) -> None:
    """It is an `InputError` of one line that says all of this."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    for part in parts:
        assert part in message
