"""Training recipes: small TOML files that say everything a run needs to be repeated."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import click

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = Path(__file__).parent / "recipes"
STRATEGIES = ("single-level", "as-blo")
LOSSES = ("l1", "psnr")


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one crop size.

    Attributes:
        steps: optimizer steps; where the run has a time, shares of it.
        patch: side of the square crops, in pixels.
        batch: crops per step.
    """

    steps: int
    patch: int
    batch: int


@dataclass(frozen=True)
class BiLevel:
    """What AS-BLO needs besides (``echoir.asblo``; paper Eq. 11-15).

    Attributes:
        lossless: weight of the losslessness of upsampling in the lower level.
        mu, theta, sigma: where the three sequences start. The slack of the constraint is
            mu/2 (1 + |z|^2), z being as large as the upsamplers' weights.
        fall: by what factor each sequence falls, geometrically, over the whole run.
        validation: share of the training images that make up the upper level's set.
        kappa: where the barrier's branches meet, in (0, 1].
        z_steps, omega_steps: descent steps a step (T_z, T_omega).
        beta_rate, omega_rate, z_rate: of each level, as a factor of the learning rate.
        lower_batch: share of a batch's crops that the lower level sees, in (0, 1]. It is evaluated twice a step
            and only tells omega what to keep to, so a step on few crops costs little more than a single-level one.
        look: steps between evaluations of the upper level at z, for the log; 0 for never.
    """

    lossless: float = 0.1
    mu: float = 1e-4
    theta: float = 1e-4
    sigma: float = 1e-3
    fall: float = 0.1
    validation: float = 0.5
    kappa: float = 1.0
    z_steps: int = 1
    omega_steps: int = 1
    beta_rate: float = 1.0
    omega_rate: float = 1.0
    z_rate: float = 1.0
    lower_batch: float = 0.25
    look: int = 20

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[bool, str]] = {
            "lossless": (self.lossless >= 0, "a number from 0 on"),
            **{name: (getattr(self, name) > 0, "a positive number") for name in ("mu", "theta", "sigma")},
            "fall": (0 < self.fall <= 1, "a number in (0, 1]"),
            "validation": (0 < self.validation < 1, "a number in (0, 1)"),
            "kappa": (0 < self.kappa <= 1, "a number in (0, 1]"),
            **{name: (getattr(self, name) >= 1, "a whole number from 1 on") for name in ("z_steps", "omega_steps")},
            **{name: (getattr(self, name) > 0, "a positive number") for name in ("beta_rate", "omega_rate", "z_rate")},
            "lower_batch": (0 < self.lower_batch <= 1, "a number in (0, 1]"),
            "look": (self.look >= 0, "a whole number from 0 on"),
        }
        for name, (holds, needed) in ranges.items():
            if not holds:
                raise click.BadParameter(f"bilevel.{name} must be {needed}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run, besides the images.

    Attributes:
        preset: the network (``echoir.networks.echoir.PRESETS``).
        network: what to change of the preset, such as ``{"upsampler": "pixelshuffle"}`` (``EchoIRConfig``).
        stages: crop size and batch over time (progressive learning, Restormer).
        learning_rate, final_learning_rate: start and end of the schedule.
        warmup: steps of linear warm-up.
        hold: steps at the full learning rate, counted from 0, before the cosine begins.
        weight_decay, betas: AdamW.
        ema: decay of the exponential moving average that is evaluated and kept.
        clip: largest gradient norm.
        seed: fixes initial weights, split, crops and noise.
        holdout: pictures kept away from training, to watch progress on; pairs, if there are any.
        pairs: share of the crops that come from pairs, where there are clean pictures too.
        validate_every, checkpoint_every: steps between validations and resumable states.
        accumulate: batches whose gradients a single-level step averages.
        loss: of single-level training: ``"l1"``, the mean absolute error; ``"psnr"``, the logarithm of each
            crop's squared error, which weighs crops of weak noise as much as those of strong noise.
        autocast: run the network in bfloat16 where PyTorch deems it safe.
        compile: use ``torch.compile``, once its first step equals an eager one (:mod:`echoir.compiled`).
        minutes: length of the run. The schedule then follows the clock: ``steps`` are where on the way
            through the stages a moment lies, and however many steps fit, the last is at the final rate.
        strategy: ``"single-level"``, or ``"as-blo"`` with its own settings in ``bilevel``.
    """

    preset: str
    stages: tuple[Stage, ...]
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    warmup: int = 200
    hold: int = 0
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    holdout: int = 8
    pairs: float = 0.5
    validate_every: int = 1000
    checkpoint_every: int = 500
    accumulate: int = 1
    loss: str = "l1"
    autocast: bool = False
    compile: bool = False
    minutes: float | None = None
    strategy: str = "single-level"
    bilevel: BiLevel = BiLevel()
    network: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise click.BadParameter(f"strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}")
        if self.loss not in LOSSES:
            raise click.BadParameter(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        if self.minutes is not None and self.strategy != "single-level":
            raise click.BadParameter("minutes is for single-level training: as-blo's sequences fall by the step")

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def position(self, step: int, seconds: float) -> float:
        """Where in the schedule a run is, in steps: by the number of steps, or by the clock if it has a time."""
        return float(step) if self.minutes is None else self.steps * seconds / (60 * self.minutes)

    def stage_at(self, position: float) -> Stage:
        """The stage that a position belongs to."""
        end = 0
        for stage in self.stages:
            end += stage.steps
            if position < end:
                break
        return stage

    def bounds(self, step: int) -> tuple[int, int]:
        """The first step of the 0-based ``step``'s stage, and the one after its last."""
        first = 0
        for stage in self.stages[:-1]:
            if step < first + stage.steps:
                return first, first + stage.steps
            first += stage.steps
        return first, self.steps

    def learning_rate_at(self, position: float) -> float:
        """Linear warm-up, a plateau, then a cosine to the final rate."""
        if position < self.warmup:
            return self.learning_rate * (position + 1) / self.warmup
        start = max(self.hold, self.warmup)
        progress = min(max(position - start, 0) / max(self.steps - start, 1), 1.0)
        span = self.learning_rate - self.final_learning_rate
        return self.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Build a recipe from TOML or JSON values.

        Raises:
            click.BadParameter: an unknown or missing field.
        """
        unknown = set(values) - {known.name for known in fields(cls)}
        if unknown:
            raise click.BadParameter(f"unknown field in the recipe: {', '.join(sorted(unknown))}")
        if not values.get("stages") or "preset" not in values:
            raise click.BadParameter("a recipe needs a preset and at least one [[stages]] entry")
        try:
            stages = tuple(Stage(**stage) for stage in values["stages"])
            if isinstance(values.get("bilevel"), dict):
                values = {**values, "bilevel": BiLevel(**values["bilevel"])}
        except TypeError as error:  # a field that is missing or unknown; the message names it
            raise click.BadParameter(f"in the recipe: {error}") from None
        if "betas" in values:
            values = {**values, "betas": tuple(values["betas"])}
        return cls(**{**values, "stages": stages})

    @classmethod
    def load(cls, name_or_path: str | Path, **overrides: Any) -> Recipe:
        """Read a TOML file, or a shipped recipe by name; ``overrides`` that are not None win.

        Raises:
            click.BadParameter: no such recipe, or invalid TOML.
        """
        path = Path(name_or_path)
        if not path.is_file():
            path = SHIPPED / f"{name_or_path}.toml"
        if not path.is_file():
            names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.toml")))
            raise click.BadParameter(f"no recipe {str(name_or_path)!r}: give a TOML file or one of {names}")
        try:
            values = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise click.BadParameter(f"{path}: {error}") from None
        return replace(cls.from_dict(values), **{k: v for k, v in overrides.items() if v is not None})
