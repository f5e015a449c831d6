"""Teachers: tables of logits by file name, ONNX models, and networks that a user's code builds."""

from __future__ import annotations

import importlib
import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from firmware_ref.errors import InputError, read_bytes, write_whole

# Of a file as it lies, and of a table when unpacked.
MODEL_LIMIT_BYTES = 2**31
TABLE_LIMIT_BYTES = 2**30


def save_table(path: str | Path, filenames: Sequence[str], logits: np.ndarray) -> None:
    """Write (n, classes) logits by file name, whole or not at all; equal content, equal bytes.

    A recording's name stands once, or once for each of its windows in order. Raises `InputError`
    where the logits do not fit the names or are not finite.
    """
    where = f"teacher table {str(path)!r}"
    assert logits.ndim == 2
    checked = _checked(logits, (len(filenames), logits.shape[1]), where)
    stream = io.BytesIO()
    np.savez_compressed(stream, filenames=np.array(filenames, np.str_), logits=checked)
    write_whole(path, stream.getvalue())


def load_table(
    path: str | Path, names: Sequence[str], window_counts: Sequence[int], classes: int
) -> np.ndarray:
    """Logits of every window of recordings ``names``, (sum of ``window_counts``, classes) float32.

    Reads an .npz of ``filenames`` (n,) and ``logits`` (n, classes), as `save_table` writes it. A
    name that stands once gives all its windows that row. The file may hold other names too. Raises
    `InputError` where a name is missing or stands neither once nor once for each window, or where
    the file is not such a table; no code in it is run.
    """
    where = f"teacher table {str(path)!r}"
    filenames, logits = _read_table(path, classes, where)
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(filenames):
        rows.setdefault(name, []).append(row)
    if missing := [name for name in names if name not in rows]:
        example = f"; it has {filenames[0]!r}, for one" if filenames else ""
        raise InputError(
            f"{where} lacks {len(missing)} of {len(names)} recordings, {missing[0]!r} first"
            f"{example}; add them, named as the dataset names them"
        )
    index: list[int] = []
    for name, count in zip(names, window_counts, strict=True):
        found = rows[name]
        if len(found) not in (1, count):
            raise InputError(
                f"{where} has {name!r} {len(found)} times; allowed: once, or {count} times, once "
                "for each of its windows"
            )
        index += found * count if len(found) == 1 else found
    return logits[np.array(index, np.intp)]


def _read_table(path: str | Path, classes: int, where: str) -> tuple[list[str], np.ndarray]:
    data = read_bytes(path, TABLE_LIMIT_BYTES, "teacher table")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked <= TABLE_LIMIT_BYTES:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                filenames, logits = arrays["filenames"], arrays["logits"]
            names = filenames.tolist()
    except Exception as error:  # zipfile, zlib and numpy have many for what is not theirs
        raise InputError(
            f"{where} is no .npz of arrays filenames and logits: {_line(error)}; write it with "
            "train.teachers.save_table"
        ) from None
    if unpacked > TABLE_LIMIT_BYTES:
        raise InputError(
            f"{where} unpacks to {unpacked:,} bytes; at most {TABLE_LIMIT_BYTES:,} are accepted"
        )
    if filenames.ndim != 1 or filenames.dtype.kind != "U":
        raise InputError(
            f"{where}: filenames are {filenames.dtype} {filenames.shape}; they must be text of "
            "shape (n,); write it with train.teachers.save_table"
        )
    return names, _checked(logits, (len(names), classes), where)


def _checked(logits: Any, shape: tuple[int, int], where: str) -> np.ndarray:
    """Logits of ``shape`` as float32, refused where they are not, or not finite."""
    if not isinstance(logits, np.ndarray) or logits.shape != shape or logits.dtype.kind != "f":
        found = f"{getattr(logits, 'dtype', type(logits).__name__)} {np.shape(logits)}"
        raise InputError(
            f"{where}: logits are {found}; needed are floats of shape {shape}, a row for each "
            "name and a column for each class"
        )
    with np.errstate(over="ignore"):
        logits = logits.astype(np.float32)
    if bad := int((~np.isfinite(logits).all(axis=1)).sum()):
        raise InputError(
            f"{where}: {bad} of {len(logits)} rows of logits hold NaN or numbers beyond float32; "
            "mend the teacher"
        )
    return logits


def average(tables: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of several teachers' logits, each (N, classes), in float64; float32.

    Raises `InputError` where there is none, or where their shapes differ.
    """
    shapes = sorted({table.shape for table in tables})
    if len(shapes) != 1:
        raise InputError(f"teachers' logits have the shapes {shapes}; give teachers of one shape")
    return np.mean(np.stack(tables), axis=0, dtype=np.float64).astype(np.float32)


def load_onnx(
    path: str | Path, shape: tuple[int, ...], classes: int, batch_size: int = 64
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from (N, *shape) float32, that is (N, C, F, T), to (N, classes) float32 logits.

    The model has one float32 input (batch, C, F, T), its batch free or fixed, and one output
    (batch, classes). Raises `InputError` where it has not, or where onnxruntime refuses it, then
    or when it is called; ModuleNotFoundError without onnxruntime.
    """
    import onnxruntime

    where = f"ONNX teacher {str(path)!r}"
    content = read_bytes(path, MODEL_LIMIT_BYTES, "ONNX teacher")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is in the exception
    available = onnxruntime.get_available_providers()
    providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]
    try:
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions have no common class
        raise InputError(f"{where} cannot be loaded: {_line(error)}; export it anew") from None
    name, fixed = _onnx_input(session, shape, where)

    def run(inputs: np.ndarray) -> np.ndarray:
        step = fixed or batch_size
        parts = [np.empty((0, classes), np.float32)]
        for start in range(0, len(inputs), step):
            chunk = np.ascontiguousarray(inputs[start : start + step], np.float32)
            count = len(chunk)
            if fixed:  # the last one filled up
                chunk = np.concatenate([chunk, np.repeat(chunk[-1:], fixed - count, axis=0)])
            try:
                (found,) = session.run(None, {name: chunk})
            except Exception as error:
                raise InputError(f"{where} cannot be run: {_line(error)}; export it anew") from None
            parts.append(_checked(found, (len(chunk), classes), where)[:count])
        return np.concatenate(parts)

    return run


def _onnx_input(session: Any, shape: tuple[int, ...], where: str) -> tuple[str, int | None]:
    """The input's name and its batch, None where free; refused where it does not fit ``shape``."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if (len(inputs), len(outputs)) != (1, 1):
        raise InputError(
            f"{where} has {len(inputs)} inputs and {len(outputs)} outputs; needed is one of each: "
            "export the logits alone"
        )
    kind, (batch, *rest) = inputs[0].type, [*inputs[0].shape] or [None]
    # A free dimension is a name or None.
    fits = [d == wanted or not isinstance(d, int) for d, wanted in zip(rest, shape, strict=False)]
    if kind != "tensor(float)" or len(rest) != len(shape) or not all(fits):
        raise InputError(
            f"{where} takes {kind} {inputs[0].shape}; needed is tensor(float) "
            f"(batch, {', '.join(map(str, shape))}): export it for this network input"
        )
    return inputs[0].name, batch if isinstance(batch, int) else None


def load_factory(
    spec: str, shape: tuple[int, int, int], classes: int, weights: str | Path | None = None
) -> nn.Module:
    """The module that ``package.module:factory`` returns, in eval mode.

    This imports and runs the code that the user named. ``weights`` is a safetensors file of
    exactly its state. The module must map (B, *shape) float32, that is (B, C, F, T), to
    (B, classes). Raises `InputError` where any of this fails.
    """
    where = f"teacher {spec!r}"
    module_name, _, factory_name = spec.partition(":")
    if not (module_name and factory_name):
        raise InputError(f"{where} must read package.module:factory, as in teachers.passt:build")
    try:
        module = getattr(importlib.import_module(module_name), factory_name)()
    except Exception as error:  # it is the user's code
        raise InputError(f"{where} failed: {_line(error)}; mend it") from error
    if not isinstance(module, nn.Module):
        raise InputError(
            f"{where} returned a {type(module).__name__}; it must return a torch.nn.Module"
        )
    if weights is not None:
        _load_weights(module, weights)
    module.eval()
    try:
        with torch.no_grad():
            found = module(torch.zeros(2, *shape))
    except Exception as error:
        raise InputError(
            f"{where} failed on zeros of shape {(2, *shape)}: {_line(error)}; mend it"
        ) from error
    if not isinstance(found, Tensor) or found.shape != (2, classes):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"{where} gives {got} for a batch of shape {(2, *shape)}; it must give {(2, classes)}"
        )
    return module


def _load_weights(module: nn.Module, path: str | Path) -> None:
    """Copy a safetensors file into a module that has exactly its names and shapes."""
    where = f"teacher weights {str(path)!r}"
    content = read_bytes(path, MODEL_LIMIT_BYTES, "teacher weights")
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{where} is no safetensors file: {_line(error)}; restore it") from None
    own = module.state_dict()
    if odd := sorted(set(own) ^ set(tensors)):
        side = "lacks" if odd[0] in own else "has"
        raise InputError(
            f"{where} {side} {odd[0]!r}, the first of {len(odd)} names that it and the module do "
            "not share; give the weights of this module"
        )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"{where}: {name!r} is {tuple(tensor.shape)}; the module has "
                f"{tuple(own[name].shape)}; give the weights of this module"
            )
    module.load_state_dict(tensors)
    # Infinity is no error: masks of attention hold it.
    if spoilt := [name for name, tensor in module.state_dict().items() if tensor.isnan().any()]:
        raise InputError(f"{where}: {spoilt[0]!r} holds NaN; restore the file")


def _line(error: BaseException) -> str:
    """An exception as one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
