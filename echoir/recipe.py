"""Training recipes: small TOML files that say everything a run needs to be repeated."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import click

from echoir.runtime.checked import Must, Natural, Positive, Text, parse
from echoir.runtime.errors import ArtifactError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = Path(__file__).parent / "recipes"
FREE = frozenset({"validate_every", "checkpoint_every", "best", "lpips"})
"""Fields that a resumed run may change: they say what is looked at and kept, not where training goes."""

Above0 = Annotated[float, Must("a number above 0", lambda value: 0 < value < math.inf)]
From0 = Annotated[float, Must("a number from 0 up", lambda value: 0 <= value < math.inf)]
UpTo1 = Annotated[float, Must("a number in (0, 1]", lambda value: 0 < value <= 1)]
Inside1 = Annotated[float, Must("a number in (0, 1)", lambda value: 0 < value < 1)]
Share = Annotated[float, Must("a number in [0, 1]", lambda value: 0 <= value <= 1)]
Below1 = Annotated[float, Must("a number in [0, 1)", lambda value: 0 <= value < 1)]


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one crop size.

    Attributes:
        steps: optimizer steps; where the run has a time, shares of it.
        patch: side of the square crops that the network takes, in pixels.
        batch: crops per step.
    """

    steps: Positive
    patch: Positive
    batch: Positive

    def __post_init__(self) -> None:
        _hold(self, "stages.")


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
        exchange: steps after which D_tr and D_val change places, so that beta learns from every picture; 0 for never.
        look: steps between evaluations of the upper level at z, for the log; 0 for never.
    """

    lossless: From0 = 0.1
    mu: Above0 = 1e-4
    theta: Above0 = 1e-4
    sigma: Above0 = 1e-3
    fall: UpTo1 = 0.1
    validation: Inside1 = 0.5
    kappa: UpTo1 = 1.0
    z_steps: Positive = 1
    omega_steps: Positive = 1
    beta_rate: Above0 = 1.0
    omega_rate: Above0 = 1.0
    z_rate: Above0 = 1.0
    lower_batch: UpTo1 = 0.25
    exchange: Natural = 0
    look: Natural = 20

    def __post_init__(self) -> None:
        _hold(self, "bilevel.")

    def exchanged(self, step: int) -> bool:
        """Whether D_tr and D_val have changed places at this step."""
        return bool(self.exchange and step // self.exchange % 2)


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run, besides the images.

    Attributes:
        preset: the network: a key of ``echoir.networks.echoir.PRESETS``, a name of ``echoir.networks.NAMES``, or
            one's own as ``"module:attribute"``.
        network: what to change of the preset, such as ``{"upsampler": "pixelshuffle"}`` (``EchoIRConfig``) or
            ``{"scale": 2}`` (``GRLConfig``); the keywords that a network of one's own is called with.
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
        loss: of restored and clean crops: a key of ``echoir.losses.LOSSES``, or one's own as ``"module:attribute"``.
        autocast: run the network in bfloat16 where PyTorch deems it safe.
        compile: use ``torch.compile``, once its first step equals an eager one (:mod:`echoir.compiled`).
        minutes: length of the run. The schedule then follows the clock: ``steps`` are where on the way
            through the stages a moment lies, and however many steps fit, the last is at the final rate.
        strategy: ``"single-level"``, or ``"as-blo"`` with its own settings in ``bilevel``.
        task: what is undone, as :func:`echoir.degradations.find_task` takes it; None leaves it to ``--task``.
        best: a figure of the validation, such as ``"rgb25"``: the averaged weights are kept where it was best.
        lpips: measure LPIPS in every validation, too; its package must be installed.
        deterministic: let PyTorch use deterministic algorithms alone, and say so where there are none.
    """

    preset: Text
    stages: tuple[Stage, ...]
    learning_rate: Above0 = 1e-3
    final_learning_rate: From0 = 1e-6
    warmup: Natural = 200
    hold: Natural = 0
    weight_decay: From0 = 1e-4
    betas: tuple[Below1, Below1] = (0.9, 0.999)
    ema: Below1 = 0.999
    clip: Above0 = 1.0
    seed: Natural = 0
    holdout: Natural = 8
    pairs: Share = 0.5
    validate_every: Positive = 1000
    checkpoint_every: Positive = 500
    accumulate: Positive = 1
    loss: Text = "l1"
    autocast: bool = False
    compile: bool = False
    minutes: Above0 | None = None
    strategy: Literal["single-level", "as-blo"] = "single-level"
    bilevel: BiLevel = field(default_factory=BiLevel)
    network: dict[str, Any] = field(default_factory=dict)
    task: Text | None = None
    best: Text | None = None
    lpips: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        _hold(self)
        if not self.stages:
            raise click.BadParameter("stages: found none, needed at least one [[stages]] entry")
        if self.minutes is not None and self.strategy != "single-level":
            raise click.BadParameter("minutes is for single-level training: as-blo's sequences fall by the step")
        if self.accumulate > 1 and self.strategy != "single-level":
            raise click.BadParameter(f"accumulate: found {self.accumulate}, needed 1: as-blo does not accumulate")

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

    def to_toml(self) -> str:
        """The recipe as a file that :meth:`load` reads; fields without a value are left out."""
        values = self.to_dict()
        tables = {name: value for name, value in values.items() if isinstance(value, dict)}
        lines = [_line(name, value) for name, value in values.items() if name not in (*tables, "stages")]
        for stage in values["stages"]:
            lines += ["\n[[stages]]\n", *(_line(name, value) for name, value in stage.items())]
        for name, table in tables.items():
            if table:
                lines += [f"\n[{name}]\n", *(_line(key, value) for key, value in table.items())]
        return "".join(lines)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Build a recipe from TOML or JSON values.

        Raises:
            click.BadParameter: an unknown or missing field, or a value of another type or range than the field's.
        """
        made = dict(values)
        stages = made.get("stages", ())
        if not isinstance(stages, (list, tuple)):
            raise click.BadParameter("stages: needed [[stages]] entries, each with steps, patch and batch")
        made["stages"] = tuple(_built(Stage, stage, f"stages[{number}].") for number, stage in enumerate(stages))
        if "bilevel" in made:
            made["bilevel"] = _built(BiLevel, made["bilevel"], "bilevel.")
        recipe: Recipe = _built(cls, made)
        return recipe

    @classmethod
    def load(cls, name_or_path: str | Path, **overrides: Any) -> Recipe:
        """Read a TOML file, or a shipped recipe by name; ``overrides`` that are not None win.

        Raises:
            click.BadParameter: no such recipe, invalid TOML, or as :meth:`from_dict`.
        """
        path = Path(name_or_path)
        if not path.is_file():
            path = SHIPPED / f"{name_or_path}.toml"
        if not path.is_file():
            names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.toml")))
            raise click.BadParameter(f"no recipe {str(name_or_path)!r}: give a TOML file or one of {names}")
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise click.BadParameter(f"{path}: {error}") from None
        return replace(cls.from_dict(values), **{k: v for k, v in overrides.items() if v is not None})

    def difference(self, before: Mapping[str, Any], step: int) -> tuple[str, Any, Any] | None:
        """The first field in which a run that was begun otherwise could not go on as this recipe, if there is one.

        A run may be extended: by time, by steps of a stage that is not over, and by stages.

        Args:
            before: the recipe it was begun with, as :meth:`to_dict` gives it or JSON holds it.
            step: how many steps it has made.

        Returns:
            (field, what it was, what it is here), as JSON has them.
        """
        now, known = json.loads(json.dumps(self.to_dict())), json.loads(json.dumps(dict(before)))
        for name in now:
            was, is_now = known.get(name, now[name]), now[name]  # a field may be younger than the run
            if name in FREE or was == is_now:
                continue
            if name == "stages" and _extends([Stage(**stage) for stage in was], self.stages, step, self.minutes):
                continue
            if name == "minutes" and was is not None and is_now is not None and is_now > was:
                continue
            return name, was, is_now
        return None


def _extends(before: Sequence[Stage], now: Sequence[Stage], step: int, minutes: float | None) -> bool:
    """Whether steps made so far are those of both, and none is taken away."""
    if minutes is not None or sum(s.steps for s in now) < sum(s.steps for s in before) or len(now) < len(before):
        return False
    end = 0
    for old, new in zip(before, now, strict=False):
        begun = step > end
        end += old.steps
        over = step >= end and old is not before[-1]
        if (begun and replace(old, steps=new.steps) != new) or (over and old.steps != new.steps):
            return False
        if begun and new.steps < old.steps:
            return False
    return True


def _hold(record: Any, where: str = "") -> None:
    """Hold every field of a recipe's part to its annotation; lists become tuples, whole numbers floats.

    Raises:
        click.BadParameter: the field, what was found and what is needed.
    """
    for name, kind in get_type_hints(type(record), include_extras=True).items():
        value = getattr(record, name)
        parts = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(part, (Stage, BiLevel)) for part in parts):
            object.__setattr__(record, name, _parsed(kind, value, where + name))


def _parsed(kind: Any, value: Any, where: str) -> Any:
    try:
        return parse(kind, value, where)
    except ArtifactError as error:
        raise click.BadParameter(f"{error.field}: found {error.found}, needed {error.needed}") from None


def _built(kind: Any, values: Any, where: str = "") -> Any:
    if not isinstance(values, Mapping):
        raise click.BadParameter(f"{where.rstrip('.')}: found {values!r}, needed a table")
    known = {entry.name: entry for entry in fields(kind)}
    if unknown := sorted(set(values) - set(known)):
        raise click.BadParameter(f"{where}{unknown[0]}: no such field; there are {', '.join(known)}")
    for name, entry in known.items():
        if name not in values and entry.default is MISSING and entry.default_factory is MISSING:
            raise click.BadParameter(f"{where}{name}: found nothing, needed a value")
    hints = get_type_hints(kind, include_extras=True)
    plain = {name: value for name, value in values.items() if name not in ("stages", "bilevel")}
    return kind(**{**values, **{name: _parsed(hints[name], value, where + name) for name, value in plain.items()}})


def _line(name: str, value: Any) -> str:
    """A field in TOML, which writes plain values as JSON does."""
    return "" if value is None else f"{name} = {json.dumps(value)}\n"
