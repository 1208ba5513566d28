"""Weights on disk: safetensors with the network's description in the header. Nothing unpickles."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ArtifactError, needs_extra
from echoir.runtime.files import atomic_write, sha256_file

if TYPE_CHECKING:
    from echoir.networks.echoir import EchoIR

FORMAT = 1
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

    network: EchoIR
    task: str
    preset: str
    path: Path
    sha256: str
    metadata: dict[str, Any]

    @property
    def descriptor(self) -> Descriptor:
        """What the network is and needs."""
        return self.network.describe(self.task, self.preset)


def save_checkpoint(path: str | Path, network: EchoIR, task: str, preset: str, metadata: dict[str, Any]) -> None:
    """Write the weights and their description; the file appears whole or not at all.

    Args:
        metadata: JSON-serialisable provenance, stored beside the network's own description.
    """
    from safetensors.torch import save

    described = {"format": FORMAT, "task": task, "preset": preset, "metadata": metadata}
    described["config"] = network.config.to_dict()
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
        from safetensors import SafetensorError, safe_open

        from echoir.networks.echoir import EchoIR, EchoIRConfig
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
    network = EchoIR(EchoIRConfig.from_dict(described["config"]))
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise ArtifactError("checkpoint.tensors", f"{path}", "the tensors its header describes", str(error)) from None
    return Checkpoint(
        network.eval(), described["task"], described["preset"], path, sha256_file(path), described["metadata"]
    )


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
