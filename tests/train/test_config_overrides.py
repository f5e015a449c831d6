"""``--set section.key=value``: one key each, checked like the file."""

from __future__ import annotations

import pytest

from firmware_ref.errors import InputError
from train.config_file import load_config


def test_overrides_change_one_key_each() -> None:
    plain = load_config("esc10")
    config = load_config(
        "esc10",
        [
            "seed=7",
            "float.epochs=2",
            "float.restart_epochs=[1]",
            " data.windows_per_clip = 3 ",
            "model.classes=3",
            "model.name=other",
            "augment.mixup_alpha=0",
            "float.epochs=4",
        ],
    )
    assert config.seed == 7
    assert (config.float_stage.epochs, config.float_stage.restart_epochs) == (4, (1,))
    assert (config.data.windows_per_clip, config.network.classes) == (3, 3)
    assert (config.network.name, config.augment.mixup_alpha) == ("other", 0.0)
    assert config.qat_stage == plain.qat_stage


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("float.epochs", "must read section.key=value"),
        ("=3", "must read section.key=value"),
        (".epochs=3", "must read section.key=value"),
        ("float.a.b=3", "must read section.key=value"),
        ("seed.x=3", "seed is not a section"),
        ("float.epochs=many", "float.epochs='many' must be an integer"),
        ("float.epochs=", "float.epochs='' must be an integer"),
        ("float.learning_rate=nan", "float.learning_rate=nan must be a number"),
        ("float.epoch=3", "unknown config key float.epoch; allowed: epochs"),
        ("flot.epochs=3", "unknown key 'flot'"),
        ("distillation.teachers=[{", "must be tables"),
        ("compute.compile=yes", "compute.compile='yes' must be true or false"),
        ("model.widths=[40, 40, 64, 1.5]", "must be a list of at most 16 integers"),
        ("model.ssn_bands=5", "ssn_bands=5 does not divide"),
        ("seed=" + "[" * 100_000, "not readable"),
        ("seed=0x" + "f" * 5000, "not readable"),
    ],
    ids=lambda text: text[:24],
)
def test_a_bad_override_is_refused(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config("esc10", [override])
