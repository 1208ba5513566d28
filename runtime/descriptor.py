"""What a network is, as the manifest carries it. No torch, nothing that can be called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from echoir.runtime.checked import Positive, Text


@dataclass(frozen=True)
class Network:
    """What was exported: preset name, number of parameters, and the whole configuration."""

    preset: Text
    parameters: Positive
    config: dict[str, Any]
