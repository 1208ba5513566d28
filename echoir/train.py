"""The training loop: a strategy's steps with an averaged copy of the network, resumable at any step.

A run lives in one folder: ``recipe.toml`` and ``run.json`` (what it is and where it comes from),
``state.safetensors`` (everything needed to go on), ``log.csv``, ``validation.csv`` and TensorBoard's events, and
at the end ``<task>.safetensors``, the averaged weights; ``<task>-best.safetensors``, where a recipe names a figure.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from echoir.checkpoint import save_checkpoint
from echoir.crops import CHUNK, Batch, Crops
from echoir.data import Picture, split
from echoir.degradations import TASKS, Task, find_task
from echoir.distributed import ALONE, World
from echoir.growth import take_over
from echoir.interrupt import deferred
from echoir.journal import Journal
from echoir.losses import Loss
from echoir.named import UNNAMED, name_of
from echoir.networks.grl import GRLConfig
from echoir.networks.table import Network
from echoir.provenance import code, picture_list
from echoir.recipe import Recipe
from echoir.recipe_network import network_of
from echoir.runtime.errors import BackendError
from echoir.runtime.files import atomic_write
from echoir.state import check_same, fill, read_state, write_state
from echoir.strategy import DivergedError, make_strategy
from echoir.utilization import Utilization
from echoir.validation import Validation

# Measured (benchmarks/training.py): vector units like channels last.
LAYOUTS = (torch.channels_last, torch.contiguous_format)  # on a CPU, on CUDA
SAVE_SECONDS = 60  # between states of a run by the clock
LOG_EVERY = 20  # steps on CUDA, which need not be waited for; elsewhere every step is logged


class Trainer:
    """One run of a recipe.

    Args:
        task: as :func:`echoir.degradations.find_task` takes it, or the task itself.
        recipe: everything that determines the run besides the images.
        pictures: clean ones and pairs. ``recipe.holdout`` are set aside to watch progress on: pairs, if
            there are any.
        folder: where the run lives; created if missing.
        world: this process's device, and the processes it shares the work with. A batch of the recipe is
            one process's, so n processes take n batches a step.
        report: called after steps with the step's number, learning rate and the strategy's figures
            (``loss`` among them), and after every validation with its figures.
        note: called with a line that a reader of the log should see.
        start: a network to start from, of the recipe's preset or smaller (:func:`echoir.growth.take_over`); None
            draws weights from the seed.
        network: one's own, in place of the recipe's preset: [N, 3, H, W] in, the same out.
        loss: one's own, in place of the recipe's: of restored and clean crops.
        validation: pictures to watch progress on; then none are held out.

    A run whose task, network or loss is an object without a name cannot be resumed, since nothing tells whether it
    goes on with the same; see :func:`echoir.named.name_of`.

    Raises:
        ArtifactError: the folder holds a damaged state, or a run of another recipe, task or pictures.
        BackendError: the device is not here.
        click.BadParameter: something the recipe names is not there, or does not fit the pictures or the network.
        DivergedError: (from :meth:`run`) a loss is no longer finite; the last state on disk is still good.
    """

    def __init__(
        self,
        task: str | Task,
        recipe: Recipe,
        pictures: Sequence[Picture],
        folder: Path,
        world: World = ALONE,
        report: Callable[..., None] = lambda **_: None,
        note: Callable[[str], None] = lambda _: None,
        start: Network | None = None,
        *,
        network: nn.Module | None = None,
        loss: Loss | None = None,
        validation: Sequence[Picture] | None = None,
    ) -> None:
        self.folder, self.world, self.report, self.note = folder, world, report, note
        self.task = find_task(task) if isinstance(task, str) else task
        known = {id(value): name for name, value in TASKS.items()}
        named = {"task": task if isinstance(task, str) else known.get(id(task), UNNAMED)}
        if network is not None:
            named["preset"] = UNNAMED
        if loss is not None:
            named["loss"] = name_of(loss)
        self.recipe = recipe = replace(recipe, **named)  # type: ignore[arg-type]  # a dict of one type
        self.pictures = list(pictures)
        self.training, self.held_out = self._divided(validation)
        torch.manual_seed(recipe.seed)
        made = network_of(recipe) if network is None else network
        described = made.describe(self.task.name, recipe.preset) if isinstance(made, Network) else None
        self.scale = 1 if described is None else described.scale
        self._check_task()
        self.validation = Validation(self.held_out, self.task, recipe.lpips, described if self.scale > 1 else None)
        if recipe.best is not None:
            self.validation.require(recipe.best)
        try:
            self.network = made.to(world.device)
        except (RuntimeError, AssertionError) as error:  # no such device, or CUDA that torch was built without
            reason = str(error).splitlines()[0]
            raise BackendError(f"device {world.device!r} cannot be used: {reason}") from None
        self._check_crops()
        self.grown = start is not None and take_over(self.network, start)
        self.layout = LAYOUTS[torch.device(world.device).type == "cuda"]
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]  # missing in torch's stubs
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
        self.strategy = make_strategy(self.network, recipe, world, loss)
        self.step, self.seconds = 0, 0.0
        self.best: dict[str, float] | None = None
        self.crops = 0  # trained on since the process began
        if self.strategy.sets == 2 and not all(self.levels()):
            share = f"{recipe.bilevel.validation} of {len(self.training)} pictures"
            raise click.BadParameter(f"bilevel.validation: found {share}, needed at least one for each level")
        folder.mkdir(parents=True, exist_ok=True)

    def _divided(self, validation: Sequence[Picture] | None) -> tuple[list[Picture], list[Picture]]:
        """What is trained on, and what is watched."""
        if validation is not None:
            return self.pictures, list(validation)
        pairs, clean = _by_kind(self.pictures)
        among, holdout = pairs or clean, self.recipe.holdout
        if len(among) <= holdout:
            kind = "pairs" if pairs else "pictures"
            needed = f"needed fewer than the {len(among)} {kind}; or watch others with --validation"
            raise click.BadParameter(f"holdout: found {holdout}, {needed}")
        kept, held_out = split(among, holdout, self.recipe.seed)
        return [*kept, *clean] if pairs else kept, held_out

    def _check_task(self) -> None:
        """Refuse pictures or a network that the task cannot use."""
        pairs, clean = _by_kind([*self.training, *self.held_out])
        if self.task.pairs and clean:
            raise click.BadParameter(
                f"task: {self.task.name} is learned from pairs, and there are {len(clean)} clean pictures "
                f"({clean[0].clean}); name folders that hold pairs alone"
            )
        enlarges = self.task is TASKS["sr"]
        if enlarges != (self.scale > 1):
            found, needed = f"of scale {self.scale}", "one that enlarges, such as grl-t" if enlarges else "scale 1"
            raise click.BadParameter(f"preset: found a network {found} for {self.task.name}, needed {needed}")
        if enlarges and pairs:
            raise click.BadParameter(
                f"task: sr reduces clean pictures itself, and there are {len(pairs)} pairs ({pairs[0].clean})"
            )

    def _check_crops(self) -> None:
        """Refuse crops that the network cannot take, before the first step."""
        for number, stage in enumerate(self.recipe.stages):
            where = f"stages[{number}].patch: found {stage.patch}"
            if isinstance(self.network, Network):
                config = self.network.config
                multiple = config.multiple if isinstance(config, GRLConfig) else config.alignment
                if stage.patch % multiple:
                    raise click.BadParameter(f"{where}, needed a multiple of {multiple}, as the network needs")
                continue
            shape = (1, 3, stage.patch, stage.patch)
            self.network.eval()
            try:
                with torch.no_grad():
                    given = tuple(self.network(torch.zeros(shape, device=self.world.device)).shape)
            except Exception as error:  # whatever a network of one's own may raise
                raise click.BadParameter(f"{where}, which the network cannot take: {error}") from None
            if given != shape:
                raise click.BadParameter(f"{where}: the network gives {given} for {shape}, needed the same")
        self.network.train()

    @property
    def state_path(self) -> Path:
        return self.folder / "state.safetensors"

    def run(self) -> Path:
        """Train to the end of the schedule and write the averaged weights; returns their path."""
        begun = time.monotonic()
        started = begun - self.seconds
        saved = self.seconds
        if self.grown and not self.step:
            self.note("the weights to start from are of a smaller network; grown, they begin as the same function")
        every = LOG_EVERY if self.world.device.startswith("cuda") else 1
        with ExitStack() as stack:
            if self.recipe.deterministic:
                stack.enter_context(_deterministic())
            wish = stack.enter_context(deferred())
            watch = stack.enter_context(Utilization(self.world.device))
            # Every process computes the same; the first one keeps the books.
            journal = stack.enter_context(Journal(self.folder, self.step)) if self.world.rank == 0 else None
            if journal is not None:
                self._describe()
            for batches in self.batches():
                position = self.recipe.position(self.step, self.seconds)
                rate = self.recipe.learning_rate_at(position)
                figures = self._train(batches, rate)
                elapsed = self.world.agreed(time.monotonic() - started)
                last = self.recipe.position(self.step, elapsed) >= self.recipe.steps
                self.seconds = elapsed
                signal = int(self.world.agreed(float(wish.signal)))
                if self.step % every == 0 or last:
                    known = self._known(figures)
                if journal is not None:
                    if self.step % every == 0 or last:
                        journal.trained(self.step, self.seconds, rate, known)
                        self.report(step=self.step, learning_rate=rate, **known)
                    if self.validation.checks and (self.step % self.recipe.validate_every == 0 or last) and not signal:
                        self._validate(journal)
                    due = self.recipe.minutes is not None and self.seconds - saved > SAVE_SECONDS
                    if self.step % self.recipe.checkpoint_every == 0 or last or due or signal:
                        self._known(figures)
                        journal.flush()
                        self.save_state()
                        saved = self.seconds
                if signal and not last:
                    self.note(f"stopped after step {self.step}; its state is saved: go on with --resume")
                    wish.grant(signal)
        if journal is None:
            return self.checkpoint_path
        if self.crops:
            rate = self.crops / (time.monotonic() - begun)
            share = "" if watch.percent is None else f"; GPU {watch.percent:.0f} % busy"
            self.note(f"{self.crops} crops, {rate:.0f} a second with all else{share}")
        return self.export()

    def _train(self, batches: list[Batch], rate: float) -> Mapping[str, float | Tensor]:
        """One step: its figures."""
        notes = len(self.strategy.notes)
        try:
            figures = self.strategy.step(batches, rate)
        except DivergedError as error:
            raise self._diverged(str(error), self.step + 1) from None
        for note in self.strategy.notes[notes:]:
            self.note(note)
        self.average.update_parameters(self.network)
        self.step += 1
        self.crops += self.world.size * sum(len(clean) for _, clean in batches)
        return figures

    def _known(self, figures: Mapping[str, float | Tensor]) -> dict[str, float]:
        """Figures as numbers: waits for the device."""
        known = {name: float(value) for name, value in figures.items()}
        if not math.isfinite(known["loss"]):
            raise self._diverged(f"the loss is {known['loss']}", self.step)
        return known

    def _diverged(self, what: str, step: int) -> DivergedError:
        good = f"the last good state is {self.state_path}" if self.state_path.exists() else "none was saved"
        return DivergedError(f"{what} at step {step}; {good}")

    def batches(self) -> Iterator[list[Batch]]:
        """From this step to the end of the schedule: the batches that the strategy asks for."""
        sets = [self.training] if self.strategy.sets == 1 else self.levels()
        device = torch.device(self.world.device)
        crops = [
            Crops(pictures, self.task, (self.recipe.seed, number), device, self.folder, self.recipe.pairs, self.scale)
            for number, pictures in enumerate(sets)
        ]
        parts = self.strategy.parts
        streams = range(parts * self.world.rank, parts * (self.world.rank + 1))
        while (position := self.recipe.position(self.step, self.seconds)) < self.recipe.steps:
            stage = self.recipe.stage_at(position)
            size = max(CHUNK // (stage.batch * self.scale**2), 1)
            first, stop = self.step, self.step + size
            if self.recipe.minutes is None:  # where a chunk begins does not depend on where a run was resumed
                begin, end = self.recipe.bounds(self.step)
                first = self.step - (self.step - begin) % size
                stop = min(first + size, end)
            chunks = [c.batches(stage, first, stop, stream) for c in crops for stream in streams]
            for step, loaded in enumerate(zip(*chunks, strict=True), first):
                if step >= self.step and self.recipe.position(self.step, self.seconds) < self.recipe.steps:
                    given = [tuple(part.contiguous(memory_format=self.layout) for part in batch) for batch in loaded]
                    yield given[::-1] if len(sets) == 2 and self.recipe.bilevel.exchanged(step) else given

    def levels(self) -> list[list[Picture]]:
        """D_tr and D_val of bi-level training: disjoint, each with its share of the pairs and of the clean pictures."""
        lower: list[Picture] = []
        upper: list[Picture] = []
        for kind in filter(None, _by_kind(self.training)):
            kept, taken = split(kind, round(len(kind) * self.recipe.bilevel.validation), self.recipe.seed + 1)
            lower += kept
            upper += taken
        return [lower, upper]

    def validate(self) -> tuple[dict[str, float], list[NDArray[np.uint8]]]:
        """The averaged network's figures, and pictures; see :meth:`echoir.validation.Validation.measure`."""
        return self.validation.measure(self.average.module, self.world.device)

    def _validate(self, journal: Journal) -> None:
        """Measure, report, and keep the weights if they are the best so far."""
        measured, shown = self.validate()
        journal.validated(self.step, measured, shown)
        self.report(step=self.step, **measured)
        figure = self.recipe.best
        if figure is not None:
            value = measured[figure]
            if self.best is None or Validation.better(figure, value, self.best["value"]):
                self.best = {"step": self.step, "value": value}
                self._save_weights(self.best_path, {"best": {"figure": figure, **self.best}})

    def _describe(self) -> None:
        """Write what this run is, and where it comes from."""
        described = {
            "code": code(),
            "pictures": picture_list(self.pictures),
            "validation": picture_list(self.held_out),
            "device": self.world.device,
            "processes": self.world.size,
            "threads": torch.get_num_threads(),
            "first_step": self.step + 1,
        }
        path = self.folder / "run.json"
        starts = json.loads(path.read_text()) if self.step and path.exists() else []
        texts = {"recipe.toml": self.recipe.to_toml(), path.name: json.dumps([*starts, described], indent=2) + "\n"}
        for name, text in texts.items():
            with atomic_write(self.folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def save_state(self) -> None:
        """Write everything :meth:`resume` needs, whole or not at all."""
        header = {
            "step": self.step,
            "seconds": self.seconds,
            "recipe": self.recipe.to_dict(),
            "pictures": picture_list(self.pictures),
            "best": self.best,
        }
        write_state(self.state_path, header, self.network, self.average, self.strategy)

    def resume(self) -> bool:
        """Continue from the folder's state, if there is one; says whether there was.

        Fields of the recipe in ``echoir.recipe.FREE`` may have changed, and there may be more steps or minutes.
        """
        if not self.state_path.exists():
            return False
        header, tensors = read_state(self.state_path)
        check_same(header, self.recipe, picture_list(self.pictures))
        self.step, self.seconds = header["step"], header["seconds"]
        fill(tensors, self.step, self.network, self.average, self.strategy)
        before = header["recipe"]
        if before.get("best") == self.recipe.best:
            self.best = header.get("best")
        if (before["stages"], before["minutes"]) != (self.recipe.to_dict()["stages"], self.recipe.minutes):
            self.note("the run is extended: from here on, its learning rates are those of the longer schedule")
        return True

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / f"{self.task.name}.safetensors"

    @property
    def best_path(self) -> Path:
        return self.folder / f"{self.task.name}-best.safetensors"

    def export(self) -> Path:
        """Write the averaged weights as a checkpoint; returns its path."""
        self._save_weights(self.checkpoint_path, {})
        return self.checkpoint_path

    def _save_weights(self, path: Path, more: dict[str, Any]) -> None:
        metadata = {
            "recipe": self.recipe.to_dict(),
            "steps": self.step,
            "seconds": round(self.seconds),
            "device": self.world.device,
            "processes": self.world.size,
            "torch": str(torch.__version__),
            "training_images": len(self.training),
            "forms": self.task.forms,
            **more,
        }
        recipe = self.recipe
        save_checkpoint(path, self.average.module, self.task.name, recipe.preset, metadata, recipe.network)


@contextmanager
def _deterministic() -> Iterator[None]:
    """PyTorch's deterministic algorithms alone; where one is missing, PyTorch says which operator it is."""
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark


def _by_kind(pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
    """(pairs, clean ones)"""
    pairs = [picture for picture in pictures if picture.degraded is not None]
    return pairs, [picture for picture in pictures if picture.degraded is None]
