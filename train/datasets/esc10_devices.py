"""ESC-10-Devices: ESC-10 heard through microphones, some of them only in testing.

It mirrors the challenge's device mismatch: every clip exists as recorded (device A) and as aligned
copies through impulse responses of other microphones, applied when features are extracted. The
nine devices of ``esc10_devices.csv`` name files of the Microphone Impulse Response Project (MicIRP,
Stewart Tavener, Xaudia.com), none of which is part of this package.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from firmware_ref.errors import InputError
from train.dataset import ONE_DEVICE, Dataset
from train.datasets import esc10
from train.datasets.index import Names, inside, rows

# The benchmark's devices, for folders that name none of their own.
NINE_DEVICES = Path(__file__).with_suffix(".csv")


def read(folder: Path) -> Dataset:
    """ESC-10 through the devices of ``devices.csv``: columns device, impulse_response, split.

    ``split`` is ``seen`` or ``unseen``; an empty impulse_response is the recording as it is, any
    other a file under ``folder``. Without that table: `NINE_DEVICES`.
    """
    clips = esc10.read(folder)
    index = folder / "devices.csv"
    index = index if index.exists() else NINE_DEVICES
    responses: dict[str, Path | None] = {}
    unseen: set[str] = set()
    names = Names()
    for where, row in rows(index, ("device", "split")):
        device, split = row["device"], row["split"]
        names.add(device, where)
        if split not in ("seen", "unseen"):
            raise InputError(f"{where}: split={split!r}; allowed: seen, unseen")
        file = row.get("impulse_response", "")
        responses[device] = inside(folder, file, where) if file else None
        if split == "unseen":
            unseen.add(device)
    if not responses.keys() - unseen:
        raise InputError(f"{str(index)!r} has no device of split 'seen'; restore the file")
    recordings = tuple(
        dataclasses.replace(
            clip,
            name=clip.name if device == ONE_DEVICE else f"{clip.name}@{device}",
            device=device,
            response=response,
        )
        for clip in clips.recordings
        for device, response in responses.items()
    )
    return Dataset(
        "ESC-10-Devices", clips.labels, recordings, frozenset(unseen), same_folds=(clips.name,)
    )
