"""The errors people see, and the one way a command reports them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

HOLDS = 0
CHECK_FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
# Names come from files: one of a million characters would hide the rest of a log.
LONGEST_LINE = 4_000

# The smallest extra of this project (pyproject.toml) that brings a package; else `convert`.
EXTRAS = {
    **dict.fromkeys(("soundfile", "soxr"), "audio"),
    **dict.fromkeys(("torch", "librosa", "scipy", "joblib", "safetensors", "tqdm"), "train"),
    **dict.fromkeys(("tensorboard", "matplotlib", "jinja2", "onnxruntime"), "train"),
}


class Main(Protocol):
    """A command: arguments in (``sys.argv`` where None), exit code out."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


NO_MEMORY = "this needs more memory than there is; give fewer or smaller inputs, or smaller batches"


class InputError(Exception):
    """Bad input or usage: one line that names the value, what is allowed, and what to do."""


class CheckFailedError(InputError):
    """Sound input that does not hold what it must: over a limit, or not the same bits."""


def guarded(main: Main) -> Main:
    """Wrap a command's ``main`` so that whatever goes wrong is one line on stderr.

    Exit code 1 for a `CheckFailedError`, 2 for an `InputError`, a missing package, an operating
    system that refuses, or memory that does not suffice; 130 for a `KeyboardInterrupt`, whose text,
    if it has one, says how to go on. Any other exception is a bug and shows.
    """

    def run(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except CheckFailedError as error:
            return _fail(str(error), CHECK_FAILED)
        except InputError as error:
            return _fail(str(error))
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").partition(".")[0], "convert")
            return _fail(
                f"this command needs the package {error.name!r}; pip install 'tinyscene[{extra}]'"
            )
        except MemoryError:
            return _fail(NO_MEMORY)
        except RuntimeError as error:
            # PyTorch's, which this package does not import.
            if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):
                return _fail(NO_MEMORY)
            raise
        except KeyboardInterrupt as error:
            said = str(error) or "interrupted; nothing half-written was left behind"
            print(_one_line(said), file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:
            # The reader (head, less) went away before the verdict: that is no success.
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives until exit
            return CHECK_FAILED
        except OSError as error:
            name = "" if error.filename is None else f" {str(error.filename)!a}"
            return _fail(f"the system refused{name}: {error.strerror or error}; give another path")
        except UnicodeEncodeError as error:
            return _fail(f"{error.object[:80]!a} cannot be printed here; set PYTHONUTF8=1")

    return run


def _fail(message: str, code: int = BAD_INPUT) -> int:
    print(f"error: {_one_line(message)}", file=sys.stderr)
    return code


def _one_line(message: str) -> str:
    """One line for stderr, control characters and what the terminal cannot show escaped.

    Of one that is too long the middle is left out: at its end it says what to do.
    """
    line = " ".join(message.split())
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    line = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in without_commands(line))
    encoding = sys.stderr.encoding or "ascii"
    return line.encode(encoding, errors="backslashreplace").decode(encoding)


def without_commands(text: str) -> str:
    """``text``, a line or the start of one, with commands to GitHub Actions in a log escaped.

    Its runner obeys ``::`` at the start of a line and ``##[`` anywhere in it (actions/runner,
    ActionCommand.cs).
    """
    text = text.replace("##[", "\\x23#[")
    return text.replace(":", "\\x3a", 1) if text.lstrip().startswith("::") else text


def read_bytes(
    path: str | Path, limit_bytes: int, what: str, first_bytes: int | None = None
) -> bytes:
    """Read a file of at most ``limit_bytes``, or its ``first_bytes``.

    ``what`` names it in the error, an `InputError`.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise InputError(f"{what} {str(path)!r} is not a file; give the path of a file")
        if size > limit_bytes:
            raise InputError(
                f"{what} {str(path)!r} has {size:,} bytes; at most {limit_bytes:,} are accepted"
            )
        with path.open("rb") as file:
            return file.read(first_bytes)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{what} {str(path)!r} cannot be read: {_reason(error)}; check the path"
        ) from None


def check_folder(path: str | Path, option: str) -> None:
    """Refuse a folder that cannot be made or written in, before the work whose result it takes.

    ``option`` is what the user gave it by, ``--out``. Nothing is left behind.
    """
    # An unset variable of a script, which would mean the current folder.
    if not str(path):
        raise InputError(f"{option} is empty; give a folder, '.' for the current one")
    try:
        folder = _followed(path)
        nearest = next(p for p in (folder, *folder.parents) if p.exists() or p.is_symlink())
        # Only trying tells: for root every folder is writable by its permissions, /proc too.
        with tempfile.TemporaryDirectory(dir=nearest, prefix=".tinyscene-"):
            pass
    except (OSError, ValueError) as error:
        raise InputError(
            f"{option} {str(path)!r} cannot be written in: {_reason(error)}; give another folder"
        ) from None


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all: a temporary name beside it, then a rename.

    A link is followed; what exists and is no regular file (a folder, a device) is refused.
    """
    try:
        path = _followed(path)
        if path.exists() and not path.is_file():
            raise InputError(f"{str(path)!r} is no regular file; give the path of a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"{str(path)!r} cannot be written: {_reason(error)}; give a writable --out"
        ) from None


def _reason(error: OSError | ValueError) -> str:
    """Why a path is refused; Python raises a ValueError for one with a null byte."""
    return str(getattr(error, "strerror", None) or error)


def _followed(path: str | Path) -> Path:
    """The path, absolute, behind its links; `Path.resolve` raises RuntimeError for a loop."""
    return Path(os.path.realpath(path))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
