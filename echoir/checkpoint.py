"""Weights on disk: safetensors with the network's description in the header. Nothing unpickles."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ArtifactError, needs_extra
from echoir.runtime.files import atomic_write, sha256_file

if TYPE_CHECKING:
    from torch import Tensor, nn

    from echoir.networks.table import Network

FORMAT = 1
OWN = "keywords"  # what the description of a network of one's own has
SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Checkpoint:
    """A network with its provenance.

    Attributes:
        network: float32, in evaluation mode.
        task: what it restores, e.g. ``"denoise"``.
        preset: the preset it started from.
        path: the file it came from.
        sha256: of that file.
        metadata: everything else the header holds: recipe, steps, seed, figures.
    """

    network: Network
    task: str
    preset: str
    path: Path
    sha256: str
    metadata: dict[str, Any]

    @property
    def descriptor(self) -> Descriptor:
        """What the network is and needs."""
        return replace(self.network.describe(self.task, self.preset), forms=tuple(self.metadata.get("forms", ())))


def save_checkpoint(
    path: str | Path,
    network: nn.Module,
    task: str,
    preset: str,
    metadata: dict[str, Any],
    config: dict[str, Any] | None = None,
) -> None:
    """Write the weights and their description; the file appears whole or not at all.

    Args:
        preset: a key of ``PRESETS``, a name of ``echoir.networks.NAMES``, or how a network of one's own is named.
        metadata: JSON-serialisable provenance, stored beside the network's own description.
        config: the keywords that build a network of one's own; the project's know theirs.
    """
    from safetensors.torch import save

    from echoir.networks.table import Network

    described = {"format": FORMAT, "task": task, "preset": preset, "metadata": metadata}
    if isinstance(network, Network):
        described |= {"architecture": type(network).__name__, "config": network.config.to_dict()}
    else:
        described["config"] = {OWN: config or {}}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"echoir": json.dumps(described)}))


def load_checkpoint(name_or_path: str | Path) -> Checkpoint:
    """Load weights by file, or by the name of a shipped checkpoint such as ``"denoise"``.

    Raises:
        ArtifactError: no such file or name, not safetensors, not this project's, an unknown
            format version, or tensors that do not fit the described network.
        MissingExtraError: torch or safetensors is not installed.
    """
    with needs_extra("train"):
        from echoir.networks.table import rebuild_network
    path, described, tensors = _read(name_or_path)
    if OWN in described["config"]:
        raise ArtifactError(
            "checkpoint.preset",
            described["preset"],
            "a network of this project",
            "evaluate takes one's own with --network module:attribute, Python with load_own",
        )
    architecture = described.get("architecture", "EchoIR")  # the only one, before the header said it
    try:
        network = rebuild_network(architecture, described["config"])
    except KeyError:
        raise ArtifactError(
            "checkpoint.architecture", architecture, "EchoIR or GRL", "a newer echoir wrote it"
        ) from None
    _fill(network, tensors, path)
    return Checkpoint(
        network.eval(), described["task"], described["preset"], path, sha256_file(path), described["metadata"]
    )


def load_own(path: str | Path, make: Callable[..., nn.Module]) -> tuple[nn.Module, str]:
    """Load weights of a network of one's own. Weights name no code to run, so that is for the caller to say.

    Args:
        make: called with the keywords that the file holds, as in training.

    Returns:
        The network, float32 in evaluation mode, and the task it restores.

    Raises:
        ArtifactError: as :func:`load_checkpoint`; or the file holds a network of this project.
    """
    path, described, tensors = _read(path)
    if OWN not in described["config"]:
        raise ArtifactError("checkpoint.preset", described["preset"], "a network of one's own", "drop --network")
    try:
        network = make(**described["config"][OWN])
    except TypeError as error:
        raise ArtifactError("checkpoint.config", described["config"][OWN], "keywords of it", str(error)) from None
    _fill(network, tensors, path)
    return network.eval(), described["task"]


def _read(name_or_path: str | Path) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """Where a checkpoint is, its description and its tensors."""
    with needs_extra("train"):
        from safetensors import SafetensorError, safe_open
    path = find_checkpoint(name_or_path)
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("echoir")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ArtifactError("checkpoint", str(path), "a safetensors file", str(error)) from None
    if header is None:
        raise ArtifactError("checkpoint", f"{path} without an 'echoir' header", "weights written by echoir train")
    described = json.loads(header)
    if described.get("format") != FORMAT:
        raise ArtifactError("checkpoint.format", described.get("format"), FORMAT, "another version of echoir wrote it")
    return path, described, tensors


def _fill(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    try:
        network.load_state_dict(floats)
    except RuntimeError as error:
        raise ArtifactError("checkpoint.tensors", f"{path}", "the tensors its header describes", str(error)) from None


def find_checkpoint(name_or_path: str | Path) -> Path:
    """Resolve a path, or the name of a shipped checkpoint.

    Raises:
        ArtifactError: neither exists; the message lists the shipped names.
    """
    path = Path(name_or_path)
    if os.path.isfile(path):  # False, where Path.is_file raises: for a name that is too long
        return path
    shipped = SHIPPED / f"{name_or_path}.safetensors"
    if path.suffix or not os.path.isfile(shipped):
        names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.safetensors"))) or "none"
        raise ArtifactError("checkpoint", str(name_or_path), f"a .safetensors file or a shipped name ({names})")
    return shipped
