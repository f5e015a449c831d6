"""Training configuration: everything one run depends on, as frozen dataclasses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from firmware_ref.arch import Network
from firmware_ref.errors import InputError

# Kinds of teacher that are trained on the run's own windows.
TRAINED_TEACHERS = ("network", "module")


@dataclass(frozen=True)
class DataConfig:
    """Which recordings, and how they are cut into one-second windows.

    ``dataset`` is a name of `train.datasets.READERS`, or the path of a ``.csv`` in the data folder.
    Training draws ``windows_per_clip`` random windows a clip and epoch from those that start
    every ``train_hop_seconds``; evaluation uses every window of the deployed cut.

    An epoch is chosen by ``selection``: on ``"validation"``, ``validation_fraction`` of the
    training clips, split by source (0 holds nothing out, and keeps the last epoch); or on
    ``"test"``, the reported split itself, as the report does, which flatters every figure and is
    marked in each.
    """

    dataset: str = "esc10"
    windows_per_clip: int = 5
    train_hop_seconds: float = 0.25
    validation_fraction: float = 0.1
    selection: str = "validation"


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD or Adam; the rate falls along a cosine to ``final_learning_rate`` between restarts.

    An epoch has as many steps as whole batches, what is left over being dealt to them; ``momentum``
    is SGD's. ``keep`` is the epoch that is kept: the ``"best"`` on the windows held
    out, or the ``"last"``.
    """

    epochs: int
    learning_rate: float
    algorithm: str = "sgd"
    restart_epochs: tuple[int, ...] = ()
    final_learning_rate: float = 1e-5
    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 0.0
    keep: str = "best"


@dataclass(frozen=True)
class AugmentConfig:
    """How training examples are varied; what is 0 is off.

    Limits of SpecAugment's masks and warp are in bands and frames (exclusive maxima of the masks,
    the largest displacement of the warp). A window is heard at one of ``pitch_shift_semitones``
    with ``pitch_shift_probability``, else with its device's spectrum corrected with
    ``spectrum_correction_probability``: by the coefficients in ``spectrum_correction_file``, or
    without one measured on ``spectrum_correction_moments`` of aligned recordings a device. An
    example is too quiet to tell, and labelled so, with ``silence_probability``.
    """

    mixup_alpha: float = 0.4
    frequency_mask_bands: int = 13
    time_mask_frames: int = 5
    time_warp_frames: int = 0
    silence_probability: float = 0.0
    pitch_shift_semitones: tuple[float, ...] = (-4.0, -2.0, 2.0, 4.0)
    pitch_shift_probability: float = 0.0
    spectrum_correction_probability: float = 0.0
    spectrum_correction_moments: int = 200
    spectrum_correction_file: str = ""


@dataclass(frozen=True)
class CrossGradientConfig:
    """Cross-gradient training: `train.cgt`; an ``epsilon`` of 0 switches it off.

    ``epsilon`` is the root mean square of a perturbation, in standard deviations of the input;
    ``perturbed_weight`` the share of the losses that perturbed examples have. The device classifier
    has a ``1 / device_width_divisor`` of the scene network's widths.
    """

    epsilon: float = 0.0
    perturbed_weight: float = 0.5
    device_width_divisor: int = 4


@dataclass(frozen=True)
class TeacherConfig:
    """One teacher: what ``kind`` it is, and its ``source``.

    ``network``: a preset of ours, trained first as ``[teacher]`` says; ``checkpoint``: a float
    checkpoint of such; ``table``: logits by file name in an ``.npz``; ``onnx``: any ONNX model of
    the network's input; ``module``: a torch module by ``package.module:factory``, its weights from
    the safetensors file ``weights``, then trained as ``[teacher]`` says.
    """

    kind: str
    source: str
    weights: str = ""


@dataclass(frozen=True)
class DistillationConfig:
    """Knowledge distillation from the averaged logits of ``teachers``: `train.kd`; none: off.

    The loss is ``label_weight`` times the labels' and the rest that of the teachers' outputs at a
    ``temperature``.
    """

    label_weight: float = 0.02
    temperature: float = 2.0
    teachers: tuple[TeacherConfig, ...] = ()


@dataclass(frozen=True)
class QatConfig:
    """Quantisation-aware training after the float stage.

    Activation ranges are measured on ``calibration_batches`` augmentation-free training batches,
    then learned at ``range_learning_rate`` (0 fixes them) until the last ``frozen_range_epochs``,
    in which weights alone learn, on the grids they are deployed with. ``float_teacher_weight`` is
    the share of the loss that compares with the float network's output, the rest being that of the
    labels and teachers.
    """

    optimizer: OptimizerConfig
    calibration_batches: int = 16
    range_learning_rate: float = 1e-2
    frozen_range_epochs: int = 0
    float_teacher_weight: float = 1.0


@dataclass(frozen=True)
class ComputeConfig:
    """What stages compute on, and how; precision and compilation are those of the float stages.

    ``device`` is ``"cpu"``, ``"cuda"`` or ``"auto"``: CUDA where there is one. ``precision`` is
    ``"float32"`` or ``"bfloat16"`` (autocast). ``compile`` passes the network through
    torch.compile. On the CPU ``threads`` threads compute.
    """

    device: str = "cpu"
    precision: str = "float32"
    compile: bool = False
    threads: int = 2


@dataclass(frozen=True)
class Config:
    """Everything one run depends on, apart from where the recordings are."""

    name: str
    network: Network
    float_stage: OptimizerConfig
    qat_stage: QatConfig
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    cross_gradient: CrossGradientConfig = field(default_factory=CrossGradientConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    teacher_stage: OptimizerConfig | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what only several keys together make wrong."""
        augment = self.augment
        shares = augment.pitch_shift_probability + augment.spectrum_correction_probability
        if shares > 1:
            raise InputError(
                "config augment.pitch_shift_probability and spectrum_correction_probability are "
                f"{shares:g} together; at most 1, a window being heard in one way"
            )
        if augment.pitch_shift_probability and not augment.pitch_shift_semitones:
            raise InputError("config augment.pitch_shift_semitones=[] leaves no shift; name some")
        if odd := [t for t in self.distillation.teachers if t.weights and t.kind != "module"]:
            raise InputError(
                f"config distillation.teachers: weights={odd[0].weights!r} of a {odd[0].kind}; "
                "only a module takes weights, leave them out"
            )
        if self.teacher_stage is None and self.trains_teachers:
            raise InputError("config section [teacher] is missing; say how teachers are trained")
        for section, stage in self.stages.items():
            rate, last = stage.learning_rate, stage.final_learning_rate
            if stage.epochs and not rate:
                raise InputError(
                    f"config {section}.learning_rate=0 trains nothing; set it above 0, or "
                    f"{section}.epochs=0"
                )
            if stage.epochs and last > rate:
                raise InputError(
                    f"config {section}.final_learning_rate={last} is above {section}.learning_rate="
                    f"{rate}, the rate would rise; set {section}.final_learning_rate={rate} or less"
                )

    @property
    def stages(self) -> dict[str, OptimizerConfig]:
        """How each part of a run is optimised, in their order, by its section in a file."""
        found = {"float": self.float_stage, "qat": self.qat_stage.optimizer}
        if self.teacher_stage and self.trains_teachers:
            found = {"teacher": self.teacher_stage, **found}
        return found

    @property
    def trains_teachers(self) -> bool:
        """Whether a teacher is trained in the run."""
        return any(t.kind in TRAINED_TEACHERS for t in self.distillation.teachers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)
