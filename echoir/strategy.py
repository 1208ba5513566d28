"""How a training step updates the network: single-level descent, or AS-BLO.

Both have the same face, so the training loop does not care: ``step`` takes batches, ``optimizers``
and ``tensors`` are what a resumable state must hold besides the network.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import AdamW, Optimizer

from echoir.asblo import ASBLO, Decay
from echoir.distributed import World
from echoir.network import EchoIR
from echoir.recipe import Recipe
from echoir.runtime.errors import EchoIRError

Batch = tuple[Tensor, Tensor]
"""(degraded, clean), both float32 [N, 3, P, P]."""
UPSAMPLERS = ("up1.", "up2.", "up3.")
WARN_EVERY = 100
"""Steps between warnings of a solver that is stuck; the log has it in every row."""


class DivergedError(EchoIRError):
    """A loss is NaN or infinite; the network was not updated."""


class Strategy(Protocol):
    """One way to train."""

    optimizers: dict[str, Optimizer]
    sets: int
    """Batches a step takes, each from images of its own."""

    def step(self, batches: Sequence[Batch], rate: float) -> dict[str, float]:
        """One step at a learning rate; returns figures to log, ``loss`` first.

        Raises:
            DivergedError: a loss is not finite.
        """

    def tensors(self) -> dict[str, Tensor]:
        """What else a resumed run needs."""

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take back what :meth:`tensors` gave."""


class SingleLevel:
    """Mean absolute error, AdamW."""

    sets = 1

    def __init__(self, network: EchoIR, recipe: Recipe, world: World) -> None:
        self.network, self.recipe, self.world = network, recipe, world
        adamw = AdamW(network.parameters(), recipe.learning_rate, recipe.betas, weight_decay=recipe.weight_decay)
        self.optimizers: dict[str, Optimizer] = {"network": adamw}
        # A graph for each stage's crop size: one for all sizes fails in Inductor (2.13, CPU), and would be slower.
        self.forward: Callable[[Tensor], Tensor] = torch.compile(network, dynamic=False) if recipe.compile else network

    def step(self, batches: Sequence[Batch], rate: float) -> dict[str, float]:
        ((degraded, clean),) = batches
        with _autocast(degraded, self.recipe):
            restored = self.forward(degraded)
        loss = (restored.float() - clean).abs().mean()
        optimizer = self.optimizers["network"]
        _set_rate(optimizer, rate)
        optimizer.zero_grad()
        loss.backward()
        loss = loss.detach()
        self.world.average([loss, *(p.grad for p in self.network.parameters() if p.grad is not None)])
        value = _finite(loss)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        optimizer.step()
        return {"loss": value}

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        pass


class ASBLOStrategy:
    """The paper's training: beta is the restoration network, omega its Echo-Upsamplers (Eq. 7-16).

    Upper level F: mean absolute error on the second batch. Lower level f: the same on the first
    batch, plus the losslessness of upsampling. A step costs one forward-backward pass of a whole batch, and two
    and a forward pass of the lower level's share of one.
    """

    sets = 2

    def __init__(self, network: EchoIR, recipe: Recipe, world: World) -> None:
        self.network, self.recipe, self.world = network, recipe, world
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
        losses = partial(functional_call, _Losses(network))
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
            warnings.warn(f"AS-BLO, step {self.solver.k}: {seen.stuck}", stacklevel=2)
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

    def __init__(self, network: EchoIR) -> None:
        super().__init__()
        self.network = network

    def forward(self, degraded: Tensor, clean: Tensor, lossless: float) -> Tensor:
        features = self.network.encode(degraded)
        loss = (self.network.decode(degraded, *features).float() - clean).abs().mean()
        if lossless:
            loss = loss + lossless * self.network.losslessness(degraded, *features).float()
        return loss


def make_strategy(network: EchoIR, recipe: Recipe, world: World) -> Strategy:
    """The strategy that the recipe names; its gradients are means over the world's processes."""
    return (ASBLOStrategy if recipe.strategy == "as-blo" else SingleLevel)(network, recipe, world)


def _autocast(tensor: Tensor, recipe: Recipe) -> AbstractContextManager[None]:
    return torch.autocast(tensor.device.type, torch.bfloat16, enabled=recipe.autocast)


def _set_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _finite(loss: Tensor) -> float:
    value = float(loss)
    if not math.isfinite(value):
        raise DivergedError(f"the loss is {value}")
    return value
