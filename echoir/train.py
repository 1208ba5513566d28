"""The training loop: single-level AdamW with an averaged copy, resumable at any step.

A run lives in one folder: ``state.safetensors`` (everything needed to go on), ``log.csv``,
``validation.csv``, and at the end ``<task>.safetensors``, the averaged weights.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from echoir.checkpoint import save_checkpoint
from echoir.data import Crops, CropSchedule, read_rgb, split_images, to_float
from echoir.degradations import TASKS, gaussian_noise
from echoir.metrics import psnr, to_8bit
from echoir.network import EchoIR
from echoir.recipe import Recipe
from echoir.runtime.errors import ArtifactError, EchoIRError
from echoir.runtime.files import atomic_write

VALIDATION_SIGMAS = (15, 25, 50)
VALIDATION_SIDE = 256


class DivergedError(EchoIRError):
    """The loss became NaN or infinite; the last state on disk is still good."""


class Trainer:
    """One run of a recipe.

    Args:
        task: a key of ``echoir.degradations.TASKS``.
        recipe: everything that determines the run besides the images.
        images: clean pictures; ``recipe.holdout`` of them are set aside for validation.
        folder: where the run lives; created if missing.
        device: torch device of the network.
        workers: processes that prepare crops; 0 prepares them in this one.
        report: called after every step with the step's number, loss and learning rate, and after
            every validation with its figures.

    Raises:
        ArtifactError: the folder holds a run of another recipe or task.
        DivergedError: (from :meth:`run`) the loss is no longer finite.
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
    ) -> None:
        self.task, self.recipe, self.folder, self.device, self.workers = task, recipe, folder, device, workers
        self.report = report
        self.training, self.held_out = split_images(images, recipe.holdout, recipe.seed)
        torch.manual_seed(recipe.seed)
        self.network: EchoIR = EchoIR.from_preset(recipe.preset).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), recipe.learning_rate, recipe.betas, weight_decay=recipe.weight_decay
        )
        self.forward: Callable[[Tensor], Tensor] = torch.compile(self.network) if recipe.compile else self.network
        self.step, self.seconds = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def state_path(self) -> Path:
        return self.folder / "state.safetensors"

    def run(self) -> Path:
        """Train to the recipe's last step and write the averaged weights; returns their path."""
        crops = Crops(self.training, TASKS[self.task], self.recipe.seed)
        schedule = CropSchedule(self.recipe, self.step)
        loader = DataLoader(crops, batch_sampler=schedule, num_workers=self.workers)
        started = time.monotonic() - self.seconds
        with (self.folder / "log.csv").open("a", newline="") as log:
            writer = csv.writer(log)
            for degraded, clean in loader:
                rate = self.recipe.learning_rate_at(self.step)
                loss = self.train_step(degraded, clean, rate)
                self.step += 1
                self.seconds = time.monotonic() - started
                writer.writerow([self.step, f"{loss:.9g}", f"{rate:.6g}", f"{self.seconds:.2f}"])
                self.report(step=self.step, loss=loss, learning_rate=rate)
                last = self.step == self.recipe.steps
                if self.step % self.recipe.checkpoint_every == 0 or last:
                    log.flush()
                    self.save_state()
                if self.step % self.recipe.validate_every == 0 or last:
                    self.validate()
        return self.export()

    def train_step(self, degraded: Tensor, clean: Tensor, rate: float) -> float:
        """One L1 step on [N, 3, P, P] crops; returns the loss.

        Raises:
            DivergedError: the loss is NaN or infinite; nothing was updated.
        """
        degraded = degraded.to(self.device, memory_format=torch.channels_last)
        clean = clean.to(self.device, memory_format=torch.channels_last)
        device_type = torch.device(self.device).type
        with torch.autocast(device_type, torch.bfloat16, enabled=self.recipe.autocast):
            restored = self.forward(degraded)
        loss = (restored.float() - clean).abs().mean()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(f"loss is {value} at step {self.step + 1}; the last good state is {self.state_path}")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        return value

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
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        header = {"task": self.task, "step": self.step, "seconds": self.seconds, "recipe": self.recipe.to_dict()}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        with atomic_write(self.state_path) as temporary:
            temporary.write_bytes(save(tensors, metadata={"state": json.dumps(header)}))

    def resume(self) -> bool:
        """Continue from the folder's state, if there is one; says whether there was."""
        from safetensors import safe_open

        if not self.state_path.exists():
            return False
        with safe_open(self.state_path, framework="pt") as file:
            header = json.loads(file.metadata()["state"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a dict
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
        state: dict[int, dict[str, Any]] = {}
        for key, value in part("optimizer.").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.seconds = header["step"], header["seconds"]
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
