"""Fixtures shared by every package's tests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

DATA_VARIABLE = "ASC_DATA"


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers, the same in every test."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def audio_data() -> Path:
    """The folder of real recordings; a test that needs it skips where there is none."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        pytest.skip(f"needs real recordings: set {DATA_VARIABLE} to the folder that holds esc10/")
    path = Path(folder)
    if not (path / "esc10" / "meta.csv").is_file():
        pytest.fail(f"{DATA_VARIABLE}={folder} holds no esc10/meta.csv")
    return path.resolve()
