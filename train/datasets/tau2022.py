"""TAU Urban Acoustic Scenes 2022 Mobile, development set, in the layout it is distributed in.

Heittola, Mesaros and Virtanen, "Acoustic scene classification in DCASE 2020 challenge", 2020;
DCASE 2022 task 1. A name such as ``audio/airport-barcelona-203-6129-0-a.wav`` is
scene-city-location-segment-piece-device, and the index must agree with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from firmware_ref.errors import InputError
from train.dataset import Dataset, Recording
from train.datasets.index import Names, inside, rows

# In the order of the challenge's tables.
LABELS = (
    "airport",
    "bus",
    "metro",
    "metro_station",
    "park",
    "public_square",
    "shopping_mall",
    "street_pedestrian",
    "street_traffic",
    "tram",
)
# What its archives unpack to.
FOLDER = "TAU-urban-acoustic-scenes-2022-mobile-development"
COLUMNS = ("filename", "scene_label", "identifier", "source_label")
TRAIN_FOLD, TEST_FOLD = 0, 1
NAME_PARTS = 6


def read(folder: Path) -> Dataset:
    """Fold 1 is the official test split, ``fold1_evaluate.csv``; fold 0 is ``fold1_train.csv``.

    Scene, place and device come from ``meta.csv``, tab-separated, in ``folder`` or its `FOLDER`,
    and are checked against the file name. Files of neither split are left out, as in the challenge.
    """
    folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    known = _known(folder)
    setup = folder / "evaluation_setup"
    recordings: list[Recording] = []
    names = Names()
    for fold, file in ((TRAIN_FOLD, "fold1_train.csv"), (TEST_FOLD, "fold1_evaluate.csv")):
        for where, row in rows(setup / file, ("filename", "scene_label"), "\t"):
            name, scene = row["filename"], row["scene_label"]
            names.add(name, where)
            if name not in known:
                raise InputError(f"{where}: {name!r} is not in meta.csv; restore the files")
            if scene != (expected := LABELS[known[name].label]):
                raise InputError(
                    f"{where}: scene_label={scene!r}, but meta.csv says {expected!r}; restore the "
                    "files"
                )
            recordings.append(dataclasses.replace(known[name], fold=fold))
    if not recordings:
        raise InputError(f"{str(setup)!r} names no recordings; restore the files")
    heard = {r.device for r in recordings if r.fold == TRAIN_FOLD}
    unseen = frozenset(r.device for r in recordings) - heard
    return Dataset("TAU Urban Acoustic Scenes 2022 Mobile", LABELS, tuple(recordings), unseen)


def _known(folder: Path) -> Mapping[str, Recording]:
    """Every recording of ``meta.csv`` by name; their folds are still to be set."""
    known = {}
    names = Names()
    for where, row in rows(folder / "meta.csv", COLUMNS, "\t"):
        name = row["filename"]
        names.add(name, where)
        _check(row, where)
        known[name] = Recording(
            name=name,
            path=inside(folder, name, where),
            label=LABELS.index(row["scene_label"]),
            fold=TRAIN_FOLD,
            source=row["identifier"],
            device=row["source_label"].upper(),
            moment=Path(name).stem.removesuffix(f"-{row['source_label']}"),
        )
    return known


def _check(row: Mapping[str, str], where: str) -> None:
    """Refuse a row whose scene, place and device its file name does not repeat."""
    parts = Path(row["filename"]).stem.split("-")
    if len(parts) != NAME_PARTS:
        raise InputError(
            f"{where}: {row['filename']!r} must read scene-city-location-segment-piece-device"
        )
    if row["scene_label"] not in LABELS:
        raise InputError(
            f"{where}: scene_label={row['scene_label']!r}; allowed: {', '.join(LABELS)}"
        )
    scene, city, location, _, _, device = parts
    expected = {
        "scene_label": scene,
        "identifier": f"{city}-{location}",
        "source_label": device,
    }
    for column, named in expected.items():
        if row[column] != named:
            raise InputError(
                f"{where}: {column}={row[column]!r}, but the file name says {named!r}; "
                "restore the files"
            )
