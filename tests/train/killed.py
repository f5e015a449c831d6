"""``python killed.py N arguments``: `python -m train` that dies in the middle of its Nth file.

The temporary file is whole, and not yet renamed: SIGKILL, so nothing is tidied up.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from train.__main__ import main

REPLACE = os.replace
left = int(sys.argv[1])


def replace(*paths: Any) -> None:
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    REPLACE(*paths)


os.replace = replace  # type: ignore[assignment]
sys.exit(main(sys.argv[2:]))
