"""What every command line of the project shares."""

from __future__ import annotations

import argparse
from typing import NoReturn

from firmware_ref.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals are one line and exit code 2, like every other."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")
