"""The training loop: a strategy's steps with an averaged copy of the network, resumable at any step.

A run lives in one folder: ``state.safetensors`` (everything needed to go on), ``log.csv``,
``validation.csv`` and TensorBoard's events, and at the end ``<task>.safetensors``, the averaged weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from echoir.checkpoint import save_checkpoint
from echoir.crops import CHUNK, Batch, Crops
from echoir.data import Picture, split
from echoir.degradations import TASKS
from echoir.distributed import ALONE, World
from echoir.journal import Journal
from echoir.metrics import psnr, to_8bit
from echoir.networks.echoir import PRESETS, EchoIR
from echoir.recipe import Recipe
from echoir.runtime.errors import ArtifactError, BackendError
from echoir.runtime.files import atomic_write
from echoir.samples import Sample, Samples, noisy_samples, task_samples
from echoir.strategy import DivergedError, make_strategy
from echoir.utilization import Utilization

VALIDATION_SIDE = 256
# Measured (benchmarks/training.py): vector units like channels last.
LAYOUTS = (torch.channels_last, torch.contiguous_format)  # on a CPU, on CUDA
WATCHED = (("rgb", 15.0), ("rgb", 25.0), ("rgb", 50.0), ("gray", 25.0), ("jpeg420", 25.0), ("clean", 0.0))
SHOWN_PICTURES = 4
SAVE_SECONDS = 60  # between states of a run by the clock
LOG_EVERY = 20  # steps on CUDA, which need not be waited for; elsewhere every step is logged


class Trainer:
    """One run of a recipe.

    Args:
        task: a key of ``echoir.degradations.TASKS``.
        recipe: everything that determines the run besides the images.
        pictures: clean ones and pairs. ``recipe.holdout`` are set aside to watch progress on: pairs, if
            there are any.
        folder: where the run lives; created if missing.
        world: this process's device, and the processes it shares the work with. A batch of the recipe is
            one process's, so n processes take n batches a step.
        report: called after steps with the step's number, learning rate and the strategy's figures
            (``loss`` among them), and after every validation with its figures.
        note: called with a line that a reader of the log should see.
        start: a network to start from, of the recipe's preset; None draws weights from the seed.

    Raises:
        ArtifactError: the folder holds a damaged state, or a run of another recipe or task.
        BackendError: the device is not here.
        click.BadParameter: an unknown preset, or an unknown switch of the network.
        DivergedError: (from :meth:`run`) a loss is no longer finite; the last state on disk is still good.
    """

    def __init__(
        self,
        task: str,
        recipe: Recipe,
        pictures: Sequence[Picture],
        folder: Path,
        world: World = ALONE,
        report: Callable[..., None] = lambda **_: None,
        note: Callable[[str], None] = lambda _: None,
        start: EchoIR | None = None,
    ) -> None:
        self.task, self.recipe, self.folder, self.world = task, recipe, folder, world
        self.report, self.note = report, note
        pairs, clean = _by_kind(pictures)
        kept, self.held_out = split(pairs or clean, recipe.holdout, recipe.seed)
        self.training = [*kept, *clean] if pairs else kept
        device = world.device
        torch.manual_seed(recipe.seed)
        if recipe.preset not in PRESETS:
            raise click.BadParameter(f"unknown preset {recipe.preset!r}; there are {', '.join(PRESETS)}")
        try:
            self.network: EchoIR = EchoIR.from_preset(recipe.preset, **recipe.network).to(device)
        except (ValueError, TypeError) as error:  # an unknown switch, or an unknown value of one
            raise click.BadParameter(f"the recipe's network: {error}") from None
        except (RuntimeError, AssertionError) as error:  # no such device, or CUDA that torch was built without
            reason = str(error).splitlines()[0]
            raise BackendError(f"device {device!r} cannot be used: {reason}") from None
        if start is not None:
            if start.config != self.network.config:
                raise ArtifactError("start", start.config, self.network.config, "the recipe trains another network")
            self.network.load_state_dict(start.state_dict())
        self.layout = LAYOUTS[torch.device(device).type == "cuda"]
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]  # missing in torch's stubs
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
        self.strategy = make_strategy(self.network, recipe, world)
        self.step, self.seconds = 0, 0.0
        self.crops = 0  # trained on since the process began
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def state_path(self) -> Path:
        return self.folder / "state.safetensors"

    def run(self) -> Path:
        """Train to the end of the schedule and write the averaged weights; returns their path."""
        begun = time.monotonic()
        started = begun - self.seconds
        saved = self.seconds
        every = LOG_EVERY if self.world.device.startswith("cuda") else 1
        with ExitStack() as stack:
            watch = stack.enter_context(Utilization(self.world.device))
            # Every process computes the same; the first one keeps the books.
            journal = stack.enter_context(Journal(self.folder, self.step)) if self.world.rank == 0 else None
            for batches in self.batches():
                position = self.recipe.position(self.step, self.seconds)
                rate = self.recipe.learning_rate_at(position)
                figures = self._train(batches, rate)
                elapsed = self.world.agreed(time.monotonic() - started)
                last = self.recipe.position(self.step, elapsed) >= self.recipe.steps
                self.seconds = elapsed
                if self.step % every == 0 or last:
                    known = self._known(figures)
                if journal is None:
                    continue
                if self.step % every == 0 or last:
                    journal.trained(self.step, self.seconds, rate, known)
                    self.report(step=self.step, learning_rate=rate, **known)
                due = self.recipe.minutes is not None and self.seconds - saved > SAVE_SECONDS
                if self.step % self.recipe.checkpoint_every == 0 or last or due:
                    self._known(figures)
                    journal.flush()
                    self.save_state()
                    saved = self.seconds
                if self.step % self.recipe.validate_every == 0 or last:
                    measured, shown = self.validate()
                    journal.validated(self.step, measured, shown)
                    self.report(step=self.step, **measured)
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
        device, task = torch.device(self.world.device), TASKS[self.task]
        crops = [
            Crops(pictures, task, (self.recipe.seed, number), device, self.folder, self.recipe.pairs)
            for number, pictures in enumerate(sets)
        ]
        parts = self.strategy.parts
        streams = range(parts * self.world.rank, parts * (self.world.rank + 1))
        while (position := self.recipe.position(self.step, self.seconds)) < self.recipe.steps:
            stage = self.recipe.stage_at(position)
            size = max(CHUNK // stage.batch, 1)
            first, stop = self.step, self.step + size
            if self.recipe.minutes is None:  # where a chunk begins does not depend on where a run was resumed
                begin, end = self.recipe.bounds(self.step)
                first = self.step - (self.step - begin) % size
                stop = min(first + size, end)
            chunks = [c.batches(stage, first, stop, stream) for c in crops for stream in streams]
            for step, loaded in enumerate(zip(*chunks, strict=True), first):
                if step >= self.step and self.recipe.position(self.step, self.seconds) < self.recipe.steps:
                    yield [tuple(part.contiguous(memory_format=self.layout) for part in batch) for batch in loaded]

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
        """The averaged network on the middles of the held-out pictures, degraded in the same way every time.

        Returns:
            PSNR in dB by check, and a few pictures of the last one: degraded, restored, clean side by side.
        """
        held = tuple(self.held_out)
        if held and held[0].degraded is not None:
            checks = {"pairs": Samples(held, None, "pairs")}
        elif self.task == "denoise":
            checks = {f"{form}{sigma:g}": noisy_samples(held, form, sigma) for form, sigma in WATCHED}
        else:
            checks = {self.task: task_samples(held, self.task)}
        figures, shown = {}, []
        for name, samples in checks.items():
            triples = [self._restored(sample) for sample in samples]
            figures[name] = float(np.mean([psnr(restored, clean, 255) for _, restored, clean in triples]))
            shown = [np.concatenate(triple, axis=1) for triple in triples[:SHOWN_PICTURES]]
        return figures, shown

    @torch.no_grad()
    def _restored(self, sample: Sample) -> list[NDArray[np.uint8]]:
        network = self.average.module.eval()
        top, left = (max(side - VALIDATION_SIDE, 0) // 2 for side in sample.truth.shape[:2])
        middle = (slice(top, top + VALIDATION_SIDE), slice(left, left + VALIDATION_SIDE))
        degraded = sample.degraded[middle]
        image = torch.from_numpy(np.ascontiguousarray(degraded.transpose(2, 0, 1)[None])).to(self.world.device)
        restored = network(image)[0].permute(1, 2, 0).cpu().numpy()
        return [to_8bit(part) for part in (degraded, restored, sample.truth[middle])]

    def save_state(self) -> None:
        """Write everything :meth:`resume` needs, whole or not at all."""
        from safetensors.torch import save

        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= {f"strategy.{k}": v for k, v in self.strategy.tensors().items()}
        for name, optimizer in self.strategy.optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{name}.{index}.{k}": v for k, v in state.items()}
        header = {"task": self.task, "step": self.step, "seconds": self.seconds, "recipe": self.recipe.to_dict()}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        with atomic_write(self.state_path) as temporary:
            temporary.write_bytes(save(tensors, metadata={"state": json.dumps(header)}))

    def resume(self) -> bool:
        """Continue from the folder's state, if there is one; says whether there was."""
        from safetensors import SafetensorError, safe_open

        if not self.state_path.exists():
            return False
        try:
            with safe_open(self.state_path, framework="pt") as file:
                header = json.loads(file.metadata()["state"])
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise ArtifactError("state", f"{self.state_path} ({error})", "a state of echoir train") from None
        if header["task"] != self.task:
            raise ArtifactError("state.task", header["task"], self.task, "this folder holds another run")
        # JSON has no tuples: compare what both sides look like after a round trip.
        recipe = json.loads(json.dumps(self.recipe.to_dict()))
        for name, value in header["recipe"].items():
            if recipe.get(name) != value:
                raise ArtifactError(f"state.recipe.{name}", value, recipe.get(name), "this folder holds another run")

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.network.load_state_dict(part("network."))
        self.average.load_state_dict(part("average."))
        for name, optimizer in self.strategy.optimizers.items():
            state: dict[int, dict[str, Any]] = {}
            for key, value in part(f"optimizer.{name}.").items():
                index, entry = key.split(".", 1)
                state.setdefault(int(index), {})[entry] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.step, self.seconds = header["step"], header["seconds"]
        self.strategy.load_tensors(part("strategy."), self.step)
        return True

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / f"{self.task}.safetensors"

    def export(self) -> Path:
        """Write the averaged weights as a checkpoint; returns its path."""
        network = self.average.module
        assert isinstance(network, EchoIR)  # AveragedModel holds a deep copy, typed as any module
        metadata = {
            "recipe": self.recipe.to_dict(),
            "steps": self.step,
            "seconds": round(self.seconds),
            "device": self.world.device,
            "processes": self.world.size,
            "torch": str(torch.__version__),
            "training_images": len(self.training),
        }
        save_checkpoint(self.checkpoint_path, network, self.task, self.recipe.preset, metadata)
        return self.checkpoint_path


def _by_kind(pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
    """(pairs, clean ones)"""
    pairs = [picture for picture in pictures if picture.degraded is not None]
    return pairs, [picture for picture in pictures if picture.degraded is None]
