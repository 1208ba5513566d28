"""What a training run needs to go on, in one safetensors file: networks, optimizers, and where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from echoir.named import UNNAMED
from echoir.recipe import Recipe
from echoir.runtime.errors import ArtifactError
from echoir.runtime.files import atomic_write
from echoir.strategy import Strategy


def write_state(path: Path, header: dict[str, Any], network: nn.Module, average: nn.Module, strategy: Strategy) -> None:
    """Write a state, whole or not at all; ``header`` is anything that JSON holds."""
    from safetensors.torch import save

    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    tensors |= {f"strategy.{k}": v for k, v in strategy.tensors().items()}
    for name, optimizer in strategy.optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{name}.{index}.{k}": v for k, v in state.items()}
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"state": json.dumps(header)}))


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A state's header and tensors.

    Raises:
        ArtifactError: the file is damaged, or no state.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["state"])
            return header, {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise ArtifactError("state", f"{path} ({error})", "a state of echoir train") from None


def check_same(header: dict[str, Any], recipe: Recipe, pictures: dict[str, Any]) -> None:
    """Refuse to go on with another run, or with what cannot be told from another.

    Args:
        header: of the state.
        recipe: to go on with.
        pictures: to go on with, as :func:`echoir.provenance.picture_list` describes them.

    Raises:
        ArtifactError: what differs, or has no name to compare.
    """
    for name in ("task", "preset", "loss"):
        if UNNAMED in (getattr(recipe, name), header["recipe"].get(name)):
            hint = "whether it is what the run was begun with cannot be known; put it in a module, and name it"
            raise ArtifactError(f"state.recipe.{name}", UNNAMED, "module:attribute", hint)
    if different := recipe.difference(header["recipe"], header["step"]):
        name, was, now = different
        raise ArtifactError(f"state.recipe.{name}", was, now, "this folder holds another run")
    before = header.get("pictures", pictures)
    if before != pictures:
        found, needed = (f"{known['count']} pictures of hash {known['sha256'][:12]}" for known in (before, pictures))
        raise ArtifactError("state.pictures", found, needed, "the run was begun on other pictures")


def fill(tensors: dict[str, Tensor], step: int, network: nn.Module, average: nn.Module, strategy: Strategy) -> None:
    """Put a state's tensors back where they came from.

    Raises:
        ArtifactError: they are those of another network: what the recipe's preset or module names has changed since.
    """

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    stored, needed = part("network."), network.state_dict()
    shapes = [{name: list(tensor.shape) for name, tensor in tensors.items()} for tensors in (stored, needed)]
    for name in sorted({*stored, *needed}):
        found, wanted = (known.get(name, "no such tensor") for known in shapes)
        if found != wanted:
            hint = "its preset has changed since the run began; begin another, with --start and this run's weights"
            raise ArtifactError(f"state.network.{name}", found, wanted, hint)
    network.load_state_dict(stored)
    average.load_state_dict(part("average."))
    for name, optimizer in strategy.optimizers.items():
        state: dict[int, dict[str, Any]] = {}
        for key, value in part(f"optimizer.{name}.").items():
            index, entry = key.split(".", 1)
            state.setdefault(int(index), {})[entry] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    strategy.load_tensors(part("strategy."), step)
