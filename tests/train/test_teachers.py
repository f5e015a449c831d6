"""Tables of teachers' logits, written and read back, and what is refused."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firmware_ref.errors import InputError
from tests.train.refusals import refused
from train import teachers
from train.teachers import average, load_table, save_table

NAMES = ["a/1.wav", "a/2.wav", "b/ü.wav"]
CLASSES = 3


@pytest.fixture
def logits(rng: np.random.Generator) -> np.ndarray:
    """A row for each of NAMES."""
    return rng.standard_normal((3, CLASSES)).astype(np.float32)


def test_a_table_comes_back_as_it_was_written(tmp_path: Path, logits: np.ndarray) -> None:
    save_table(tmp_path / "t.npz", NAMES, logits)
    found = load_table(tmp_path / "t.npz", NAMES, [1, 1, 1], CLASSES)
    assert found.dtype == np.float32 and np.array_equal(found, logits)


def test_all_windows_of_a_recording_share_its_one_row(tmp_path: Path, logits: np.ndarray) -> None:
    """In the order of the names asked for, whatever the order of the file and its other names."""
    save_table(tmp_path / "t.npz", NAMES, logits)
    found = load_table(tmp_path / "t.npz", ["b/ü.wav", "a/1.wav"], [1, 3], CLASSES)
    assert np.array_equal(found, logits[[2, 0, 0, 0]])


def test_windows_have_rows_of_their_own_in_order(tmp_path: Path, rng: np.random.Generator) -> None:
    names = ["x", "y", "x", "z", "y", "x"]
    logits = rng.standard_normal((6, CLASSES)).astype(np.float32)
    save_table(tmp_path / "t.npz", names, logits)
    found = load_table(tmp_path / "t.npz", ["x", "y", "z"], [3, 2, 2], CLASSES)
    assert np.array_equal(found, logits[[0, 2, 5, 1, 4, 3, 3]])


def test_equal_tables_are_equal_bytes(tmp_path: Path, logits: np.ndarray) -> None:
    for name in ("a", "b"):
        save_table(tmp_path / name, NAMES, logits)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"], "no suffix, no leftover"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_any_float_is_read(tmp_path: Path, logits: np.ndarray, dtype: Any) -> None:
    stored = logits.astype(dtype)
    np.savez(tmp_path / "t.npz", filenames=np.array(NAMES), logits=stored)
    found = load_table(tmp_path / "t.npz", NAMES, [1, 1, 1], CLASSES)
    assert found.dtype == np.float32 and np.array_equal(found, stored.astype(np.float32))


def test_missing_names_are_counted_and_the_first_is_named(
    tmp_path: Path, logits: np.ndarray
) -> None:
    path = tmp_path / "t.npz"
    save_table(path, NAMES, logits)
    refused(
        lambda: load_table(path, ["a/1.wav", "2.wav", "3.wav"], [1, 1, 1], CLASSES),
        "lacks 2 of 3 recordings, '2.wav' first; it has 'a/1.wav', for one; add them",
        str(path),
    )


@pytest.mark.parametrize("count", [1, 3])
def test_a_name_neither_once_nor_once_a_window_is_refused(
    tmp_path: Path, logits: np.ndarray, count: int
) -> None:
    save_table(tmp_path / "t.npz", ["x", "x", "y"], logits)
    refused(
        lambda: load_table(tmp_path / "t.npz", ["y", "x"], [1, count], CLASSES),
        f"has 'x' 2 times; allowed: once, or {count} times",
    )


def arrays(**changes: Any) -> dict[str, Any]:
    sound = {"filenames": np.array(NAMES), "logits": np.ones((3, CLASSES), np.float32)}
    return {**sound, **changes}


def nan_in(*shape: int) -> np.ndarray:
    values = np.ones(shape)
    values[-1, -1] = np.nan
    return values


BAD_ARRAYS = [
    ({"logits": np.ones((3, 4), np.float32)}, "float32 (3, 4); needed are floats of shape (3, 3)"),
    ({"logits": np.ones((2, 3), np.float32)}, "float32 (2, 3); needed are floats of shape (3, 3)"),
    ({"logits": np.ones(3, np.float32)}, "float32 (3,); needed"),
    ({"logits": np.ones((3, 3), np.int64)}, "int64 (3, 3); needed are floats"),
    ({"logits": np.ones((3, 3), np.complex64)}, "complex64 (3, 3); needed are floats"),
    ({"logits": nan_in(3, 3)}, "1 of 3 rows of logits hold NaN or numbers beyond float32"),
    ({"logits": np.full((3, 3), 1e39)}, "3 of 3 rows of logits hold NaN or numbers beyond"),
    ({"logits": np.full((3, 3), -np.inf)}, "3 of 3 rows"),
    ({"filenames": np.array([b"a", b"b", b"c"])}, "filenames are |S1 (3,); they must be text"),
    ({"filenames": np.array([NAMES])}, "(1, 3); they must be text of shape (n,)"),
    ({"filenames": np.arange(3)}, "int64 (3,); they must be text"),
    ({"filenames": np.array(NAMES, object)}, "is no .npz of arrays filenames and logits"),
    ({"logits": np.array([[None]])}, "is no .npz of arrays filenames and logits"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_ARRAYS)
def test_arrays_that_are_no_table_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, **arrays())
    assert load_table(path, NAMES, [1, 1, 1], CLASSES).shape == (3, CLASSES)
    np.savez(path, **arrays(**changes))
    refused(lambda: load_table(path, NAMES, [1, 1, 1], CLASSES), message, str(path))


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"

    def load() -> np.ndarray:
        return load_table(path, NAMES, [1, 1, 1], CLASSES)

    refused(load, "cannot be read")
    single = io.BytesIO()
    np.save(single, np.ones(3))
    for content in (b"", b"PK", b"not a zip" * 50, pickle.dumps(NAMES), single.getvalue()):
        path.write_bytes(content)
        refused(load, "is no .npz of arrays filenames and logits", "train.teachers.save_table")
    for names in (["filenames"], ["logits"], []):
        np.savez(path, **{name: arrays()[name] for name in names})
        refused(load, "is no .npz of arrays")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("filenames.npy", b"no array")
        archive.writestr("logits.npy", b"no array")
    refused(load, "is no .npz of arrays")


def test_names_outside_unicode_are_refused(tmp_path: Path) -> None:
    wild = np.array([0x7FFFFFFF] * 3, np.uint32).view("<U1")
    np.savez(tmp_path / "t.npz", **arrays(filenames=wild))
    refused(lambda: load_table(tmp_path / "t.npz", NAMES, [1, 1, 1], CLASSES), "is no .npz")


def test_what_unpacks_to_too_much_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.npz"
    np.savez_compressed(path, **arrays(filler=np.zeros(100_000, np.float32)))
    monkeypatch.setattr(teachers, "TABLE_LIMIT_BYTES", 50_000)
    assert path.stat().st_size < 50_000
    monkeypatch.setattr(np, "load", None)
    refused(lambda: load_table(path, NAMES, [1, 1, 1], CLASSES), "unpacks to 4", "at most 50,000")


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    """Whatever the shape it states, nothing is made of it."""
    member = io.BytesIO()
    np.save(member, np.ones((3, CLASSES), np.float32))
    for shape in ("(3, 3)", f"({2**40}, 3)", f"({2**62}, {2**62})", "(-3, 3)", "(3, 3, 0)"):
        content = member.getvalue().replace(b"(3, 3), }", f"{shape}, }}".encode())
        # The header is as long as it was; spaces fill it up.
        spare = len(content) - len(member.getvalue())
        content = content.replace(b" " * spare + b"\n", b"\n", 1)
        with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
            archive.writestr("logits.npy", content)
            names = io.BytesIO()
            np.save(names, np.array(NAMES))
            archive.writestr("filenames.npy", names.getvalue())

        def load() -> np.ndarray:
            return load_table(tmp_path / "t.npz", NAMES, [1, 1, 1], CLASSES)

        if shape == "(3, 3)":
            assert load().shape == (3, CLASSES)
        else:
            refused(load, "teacher table")


def test_mutated_tables_are_read_or_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    np.savez(tmp_path / "t.npz", **arrays())
    sound = (tmp_path / "t.npz").read_bytes()
    outcomes = set()
    for _ in range(400):
        content = bytearray(sound)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            content[place] = rng.integers(0, 256)
        if rng.random() < 0.2:
            content = content[: rng.integers(0, len(content))]
        (tmp_path / "m.npz").write_bytes(content)
        try:
            found = load_table(tmp_path / "m.npz", NAMES, [1, 1, 1], CLASSES)
            assert found.shape == (3, CLASSES) and np.isfinite(found).all()
            outcomes.add("read")
        except InputError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_what_is_not_finite_is_not_written(tmp_path: Path) -> None:
    refused(lambda: save_table(tmp_path / "t.npz", NAMES, nan_in(3, CLASSES)), "1 of 3 rows")
    refused(lambda: save_table(tmp_path / "t.npz", NAMES, np.ones((2, 3))), "(2, 3); needed")
    assert not list(tmp_path.iterdir())


def test_the_mean_of_two_teachers_by_hand() -> None:
    first, second = np.array([[1, 2], [3, 4]], np.float32), np.array([[3, 2], [5, 0]], np.float32)
    found = average([first, second])
    assert found.dtype == np.float32 and np.array_equal(found, [[2, 2], [4, 2]])
    assert np.array_equal(average([first]), first)
    # In float32 the sum would be infinite.
    large = np.full((1, 2), 3e38, np.float32)
    assert np.array_equal(average([large, large]), large)


def test_teachers_of_other_shapes_or_none_are_refused() -> None:
    refused(lambda: average([np.ones((2, 3)), np.ones((2, 4))]), "[(2, 3), (2, 4)]; give teachers")
    refused(lambda: average([]), "shapes []")
