"""How a training step updates the network: single-level descent, or AS-BLO.

Both have the same face, so the training loop does not care: ``step`` takes batches, ``optimizers``
and ``tensors`` are what a resumable state must hold besides the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

import click
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import AdamW, Optimizer

from echoir.asblo import ASBLO, Decay
from echoir.captured import Captured
from echoir.compiled import Choice, Mode, choose
from echoir.crops import Batch
from echoir.distributed import World
from echoir.losses import Loss, find_loss
from echoir.networks.echoir import EchoIR
from echoir.recipe import Recipe
from echoir.runtime.errors import EchoIRError

UPSAMPLERS = ("up1.", "up2.", "up3.")
WARN_EVERY = 100
"""Steps between notes of a solver that is stuck; the log has it in every row."""


class DivergedError(EchoIRError):
    """A loss is NaN or infinite."""


class Strategy(Protocol):
    """One way to train."""

    optimizers: dict[str, Optimizer]
    sets: int
    """Sets of images that a step draws on."""
    parts: int
    """Batches that it takes from each."""

    @property
    def notes(self) -> list[str]:
        """What a reader of the log should know, in the order in which it was found."""

    def step(self, batches: Sequence[Batch], rate: float) -> Mapping[str, float | Tensor]:
        """One step at a learning rate; returns figures to log, ``loss`` first.

        A figure may be a tensor of one element that is still being computed.

        Raises:
            DivergedError: a loss is not finite; the network was not updated.
        """

    def tensors(self) -> dict[str, Tensor]:
        """What else a resumed run needs."""

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take back what :meth:`tensors` gave."""


class SingleLevel:
    """Plain descent on all parameters: the ablation's other arm, and the usual way to warm up.

    A step averages the gradients of the recipe's ``accumulate`` batches. On CUDA its loss is not waited for, and a
    process that is alone launches it as one graph.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, world: World, loss: Loss) -> None:
        self.network, self.recipe, self.world, self.loss = network, recipe, world, loss
        self.sets, self.parts = 1, recipe.accumulate
        cuda = world.device.startswith("cuda")
        self._captures = cuda and world.size == 1
        rate = torch.tensor(recipe.learning_rate, device=world.device) if self._captures else recipe.learning_rate
        adamw = AdamW(
            network.parameters(),
            rate,
            recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=cuda,
            capturable=self._captures,
        )
        self.optimizers: dict[str, Optimizer] = {"network": adamw}
        self._chosen: dict[torch.Size, Choice] = {}
        self._captured: dict[torch.Size, Captured] = {}

    def step(self, batches: Sequence[Batch], rate: float) -> Mapping[str, float | Tensor]:
        _set_rate(self.optimizers["network"], rate)
        for batch in batches:  # before the gradients: a first comparison uses them
            self._choice(batch)
        if not self._captures:
            return {"loss": self._update(batches)}
        size = batches[0][0].shape
        if size not in self._captured:
            self._captured[size] = Captured(self._update)
        return {"loss": self._captured[size](batches)}

    def _update(self, batches: Sequence[Batch]) -> Tensor:
        optimizer = self.optimizers["network"]
        optimizer.zero_grad()
        total = torch.zeros((), device=batches[0][0].device)
        for degraded, clean in batches:
            choice = self._choice((degraded, clean))
            with torch.autocast(degraded.device.type, torch.bfloat16, enabled=choice.mode.bfloat16):
                restored = choice.forward(degraded)
            loss = self.loss(restored.float(), clean) / len(batches)
            loss.backward()
            total += loss.detach()
        self.world.average([total, *(p.grad for p in self.network.parameters() if p.grad is not None)])
        if not total.is_cuda:
            _finite(total)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        optimizer.step()
        return total

    def _choice(self, batch: Batch) -> Choice:
        """How crops of this size are run: decided, and said, once."""
        size = batch[0].shape
        if size not in self._chosen:
            wanted = Mode(self.recipe.compile, self.recipe.autocast)
            self._chosen[size] = choose(self.network, batch, self.loss, wanted)
        return self._chosen[size]

    @property
    def notes(self) -> list[str]:
        found = [choice.note for choice in self._chosen.values()]
        return [note for note in [*found, *(captured.note for captured in self._captured.values())] if note]

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        pass


class ASBLOStrategy:
    """The paper's training: beta is the restoration network, omega its Echo-Upsamplers (Eq. 7-16).

    Upper level F: the loss (the paper's is ``"l1"``) on the second batch. Lower level f: the same on the first
    batch, plus the losslessness of upsampling. A step costs one forward-backward pass of a whole batch, and two
    and a forward pass of the lower level's share of one.
    """

    sets, parts = 2, 1

    def __init__(self, network: EchoIR, recipe: Recipe, world: World, loss: Loss) -> None:
        self.network, self.recipe, self.world = network, recipe, world
        self.notes: list[str] = []
        named = dict(network.named_parameters())
        self.omega_names = [name for name in named if name.startswith(UPSAMPLERS)]
        self.beta_names = [name for name in named if not name.startswith(UPSAMPLERS)]
        settings = recipe.bilevel
        decay = settings.fall ** (1 / recipe.steps)
        adam = partial(AdamW, lr=recipe.learning_rate, betas=recipe.betas)
        self.solver = ASBLO(
            [named[name] for name in self.beta_names],
            [named[name] for name in self.omega_names],
            partial(adam, weight_decay=recipe.weight_decay),
            # mu and theta already draw z and omega to zero.
            partial(adam, weight_decay=0.0),
            partial(adam, weight_decay=0.0),
            mu=Decay(settings.mu, decay),
            theta=Decay(settings.theta, decay),
            sigma=Decay(settings.sigma, decay),
            kappa=settings.kappa,
            z_steps=settings.z_steps,
            omega_steps=settings.omega_steps,
            clip=recipe.clip,
            look=settings.look,
            average=world.average,
        )
        self.optimizers: dict[str, Optimizer] = {
            "beta": self.solver.beta_optimizer,
            "omega": self.solver.omega_optimizer,
            "z": self.solver.z_optimizer,
        }
        losses = partial(functional_call, _Losses(network, loss))
        self.losses = torch.compile(losses, dynamic=False) if recipe.compile else losses

    def step(self, batches: Sequence[Batch], rate: float) -> dict[str, float]:
        training, validation = batches
        settings = self.recipe.bilevel
        for level, optimizer in self.optimizers.items():
            _set_rate(optimizer, rate * getattr(settings, f"{level}_rate"))
        few = max(1, round(settings.lower_batch * len(training[0])))
        try:
            seen = self.solver.step(
                partial(self._objective, validation, 0.0),
                partial(self._objective, (training[0][:few], training[1][:few]), settings.lossless),
            )
        except FloatingPointError as error:
            raise DivergedError(str(error)) from None
        if not math.isfinite(seen.upper):
            raise DivergedError(f"the upper level's loss is {seen.upper}")
        if seen.stuck and self.solver.k % WARN_EVERY == 0 and not self.world.rank:
            self.notes.append(f"AS-BLO, step {self.solver.k}: {seen.stuck}")
        return {
            "loss": seen.upper,
            "upper_at_z": seen.upper_at_z,
            "lower": seen.lower,
            "lower_at_z": seen.lower_at_z,
            "zeta": seen.zeta,
            "barrier": seen.barrier,
            "slope": seen.slope,
            "pulled_back": seen.pulled_back,
            "halved": seen.halved,
            "stuck": bool(seen.stuck),
        }

    def _objective(self, batch: Batch, lossless: float, beta: Sequence[Tensor], omega: Sequence[Tensor]) -> Tensor:
        names = (f"network.{name}" for name in (*self.beta_names, *self.omega_names))
        parameters = dict(zip(names, (*beta, *omega), strict=True))
        with _autocast(batch[0], self.recipe):
            loss: Tensor = self.losses(parameters, (*batch, lossless))
        return loss

    def tensors(self) -> dict[str, Tensor]:
        z = {f"z.{name}": z for name, z in zip(self.omega_names, self.solver.z, strict=True)}
        return z | {"in_a_row": torch.tensor([self.solver.halved_in_a_row, self.solver.pulled_in_a_row])}

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        with torch.no_grad():
            for name, z in zip(self.omega_names, self.solver.z, strict=True):
                z.copy_(tensors[f"z.{name}"])
        self.solver.halved_in_a_row, self.solver.pulled_in_a_row = tensors["in_a_row"].tolist()
        self.solver.k = step


class _Losses(nn.Module):
    """A network's losses as one module, so that its parameters can be replaced for a call."""

    def __init__(self, network: EchoIR, loss: Loss) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, degraded: Tensor, clean: Tensor, lossless: float) -> Tensor:
        features = self.network.encode(degraded)
        loss = self.loss(self.network.decode(degraded, *features).float(), clean)
        if lossless:
            loss = loss + lossless * self.network.losslessness(degraded, *features).float()
        return loss


def make_strategy(network: nn.Module, recipe: Recipe, world: World, loss: Loss | None = None) -> Strategy:
    """The strategy that the recipe names; its gradients are means over the world's processes.

    Args:
        loss: in place of the recipe's.

    Raises:
        click.BadParameter: the recipe's loss is not found, or its strategy needs another network.
    """
    loss = loss or find_loss(recipe.loss)
    if recipe.strategy == "single-level":
        return SingleLevel(network, recipe, world, loss)
    if not isinstance(network, EchoIR):
        raise click.BadParameter(
            f"strategy: found as-blo for {type(network).__name__}, needed single-level: the lower level is about the "
            "upsamplers of EchoIR"
        )
    return ASBLOStrategy(network, recipe, world, loss)


def _autocast(tensor: Tensor, recipe: Recipe) -> AbstractContextManager[None]:
    return torch.autocast(tensor.device.type, torch.bfloat16, enabled=recipe.autocast)


def _set_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # a recorded step reads it where it is
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _finite(loss: Tensor) -> float:
    value = float(loss)
    if not math.isfinite(value):
        raise DivergedError(f"the loss is {value}")
    return value
