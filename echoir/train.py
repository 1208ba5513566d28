"""The training loop: a strategy's steps with an averaged copy of the network, resumable at any step.

A run lives in one folder: ``state.safetensors`` (everything needed to go on), ``log.csv``,
``validation.csv``, and at the end ``<task>.safetensors``, the averaged weights.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from echoir.checkpoint import save_checkpoint
from echoir.data import Crops, CropSchedule, read_rgb, split_images, to_float
from echoir.degradations import TASKS, gaussian_noise
from echoir.metrics import psnr, to_8bit
from echoir.network import PRESETS, EchoIR
from echoir.recipe import Recipe
from echoir.runtime.errors import ArtifactError, BackendError
from echoir.runtime.files import atomic_write
from echoir.strategy import Batch, DivergedError, make_strategy

VALIDATION_SIGMAS = (15, 25, 50)
VALIDATION_SIDE = 256


class Trainer:
    """One run of a recipe.

    Args:
        task: a key of ``echoir.degradations.TASKS``.
        recipe: everything that determines the run besides the images.
        images: clean pictures; ``recipe.holdout`` of them are set aside for validation.
        folder: where the run lives; created if missing.
        device: torch device of the network.
        workers: processes that prepare crops; 0 prepares them in this one.
        report: called after every step with the step's number, learning rate and the strategy's
            figures (``loss`` among them), and after every validation with its figures.
        start: a network to start from, of the recipe's preset; None draws weights from the seed.

    Raises:
        ArtifactError: the folder holds a damaged state, or a run of another recipe or task.
        BackendError: the device is not here.
        click.BadParameter: an unknown preset.
        DivergedError: (from :meth:`run`) a loss is no longer finite; the last state on disk is still good.
    """

    def __init__(
        self,
        task: str,
        recipe: Recipe,
        images: list[Path],
        folder: Path,
        device: str = "cpu",
        workers: int = 0,
        report: Callable[..., None] = lambda **_: None,
        start: EchoIR | None = None,
    ) -> None:
        self.task, self.recipe, self.folder, self.device, self.workers = task, recipe, folder, device, workers
        self.report = report
        self.training, self.held_out = split_images(images, recipe.holdout, recipe.seed)
        torch.manual_seed(recipe.seed)
        if recipe.preset not in PRESETS:
            raise click.BadParameter(f"unknown preset {recipe.preset!r}; there are {', '.join(PRESETS)}")
        try:
            self.network: EchoIR = EchoIR.from_preset(recipe.preset).to(device)
        except (RuntimeError, AssertionError) as error:  # no such device, or CUDA that torch was built without
            reason = str(error).splitlines()[0]
            raise BackendError(f"device {device!r} cannot be used: {reason}") from None
        if start is not None:
            if start.config != self.network.config:
                raise ArtifactError("start", start.config, self.network.config, "the recipe trains another network")
            self.network.load_state_dict(start.state_dict())
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
        self.strategy = make_strategy(self.network, recipe)
        self.step, self.seconds = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def state_path(self) -> Path:
        return self.folder / "state.safetensors"

    def run(self) -> Path:
        """Train to the recipe's last step and write the averaged weights; returns their path."""
        started = time.monotonic() - self.seconds
        with (self.folder / "log.csv").open("a", newline="") as log:
            writer = csv.writer(log)
            for batches in self.batches():
                rate = self.recipe.learning_rate_at(self.step)
                try:
                    figures = self.strategy.step(batches, rate)
                except DivergedError as error:
                    good = f"the last good state is {self.state_path}" if self.state_path.exists() else "none was saved"
                    raise DivergedError(f"{error} at step {self.step + 1}; {good}") from None
                self.average.update_parameters(self.network)
                self.step += 1
                self.seconds = time.monotonic() - started
                numbers = (f"{value:.9g}" for value in figures.values())
                writer.writerow([self.step, f"{self.seconds:.2f}", f"{rate:.6g}", *numbers])
                self.report(step=self.step, learning_rate=rate, **figures)
                last = self.step == self.recipe.steps
                if self.step % self.recipe.checkpoint_every == 0 or last:
                    log.flush()
                    self.save_state()
                if self.step % self.recipe.validate_every == 0 or last:
                    self.validate()
        return self.export()

    def batches(self) -> Iterator[list[Batch]]:
        """From this step on: a batch per set of images that the strategy asks for."""
        sets = [self.training]
        if self.strategy.sets == 2:  # the lower level's D_tr first, then the upper level's D_val
            count = round(len(self.training) * self.recipe.bilevel.validation)
            sets = list(split_images(self.training, count, self.recipe.seed + 1))
        loaders = []
        for number, images in enumerate(sets):
            crops = Crops(images, TASKS[self.task], self.recipe.seed + number)
            schedule = CropSchedule(self.recipe, self.step)
            loaders.append(DataLoader(crops, batch_sampler=schedule, num_workers=self.workers))
        for loaded in zip(*loaders, strict=True):
            yield [self._move(batch) for batch in loaded]

    def _move(self, batch: list[Tensor]) -> Batch:
        degraded, clean = (t.to(self.device, memory_format=torch.channels_last) for t in batch)
        return degraded, clean

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """PSNR of the averaged network on the held-out images at fixed noise levels, in dB."""
        network = self.average.module.eval()
        figures: dict[str, float] = {}
        for sigma in VALIDATION_SIGMAS:
            values = []
            for number, path in enumerate(self.held_out):
                clean = read_rgb(path)
                top, left = (max(side - VALIDATION_SIDE, 0) // 2 for side in clean.shape[:2])
                clean = clean[top : top + VALIDATION_SIDE, left : left + VALIDATION_SIDE]
                noisy = gaussian_noise(to_float(clean), sigma, np.random.default_rng(number))
                image = torch.from_numpy(noisy.transpose(2, 0, 1)[None]).to(self.device)
                restored = network(image)[0].permute(1, 2, 0).cpu().numpy()
                values.append(psnr(to_8bit(restored), clean, 255))
            figures[f"sigma{sigma}"] = float(np.mean(values))
        with (self.folder / "validation.csv").open("a", newline="") as file:
            csv.writer(file).writerow([self.step, *(f"{v:.4f}" for v in figures.values())])
        self.report(step=self.step, **figures)
        return figures

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
        self._drop_log_after(self.step)
        return True

    def export(self) -> Path:
        """Write the averaged weights as a checkpoint; returns its path."""
        path = self.folder / f"{self.task}.safetensors"
        network = self.average.module
        assert isinstance(network, EchoIR)  # AveragedModel holds a deep copy, typed as any module
        metadata = {
            "recipe": self.recipe.to_dict(),
            "steps": self.step,
            "seconds": round(self.seconds),
            "device": self.device,
            "torch": str(torch.__version__),
            "training_images": len(self.training),
        }
        save_checkpoint(path, network, self.task, self.recipe.preset, metadata)
        return path

    def _drop_log_after(self, step: int) -> None:
        """A killed run may have logged steps that its last state does not contain; they come again."""
        for name in ("log.csv", "validation.csv"):
            path = self.folder / name
            if path.exists():
                kept = [line for line in path.read_text().splitlines(True) if int(line.split(",")[0]) <= step]
                with atomic_write(path) as temporary:
                    temporary.write_text("".join(kept))
