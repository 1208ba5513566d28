"""What is said of a network that somebody brings: by flags, by a TOML file beside it, by what its library says."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from echoir.runtime.checked import Natural, Text, parse
from echoir.runtime.descriptor import Descriptor, Pair, Planes, Scale
from echoir.runtime.errors import ArtifactError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Declared:
    """Fields of :class:`~echoir.runtime.descriptor.Descriptor` that are known; None is for a run to find out."""

    architecture: Text | None = None
    variant: str | None = None
    task: Text | None = None
    scale: Scale | None = None
    input: Planes | None = None
    output: Planes | None = None
    multiple: Pair | None = None
    phase: Pair | None = None
    overlap: Natural | None = None
    tile: Pair | None = None
    local: bool | None = None

    @classmethod
    def of(cls, descriptor: Descriptor) -> Declared:
        """All that a descriptor says."""
        return cls(**{one.name: getattr(descriptor, one.name) for one in fields(cls)})

    @classmethod
    def read(cls, path: Path) -> Declared:
        """What a TOML file says, in the fields' names.

        Raises:
            ArtifactError: it cannot be read, or a field is unknown or of the wrong type or value.
        """
        try:
            values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ArtifactError("network", f"{path}, unreadable ({error})", "a TOML file that describes it") from None
        empty = {one.name: None for one in fields(cls)}
        said: Declared = parse(cls, {**empty, **values}, path.name)
        return said

    def or_else(self, other: Declared) -> Declared:
        """This, and where it says nothing, the other."""
        missing = [one.name for one in fields(self) if getattr(self, one.name) is None]
        return replace(self, **{name: getattr(other, name) for name in missing})

    def check(self, descriptor: Descriptor) -> None:
        """Refuse what is said of a network that is known.

        Raises:
            ArtifactError: a field is said to be something else; it is named.
        """
        for one in fields(self):
            said, known = getattr(self, one.name), getattr(descriptor, one.name)
            if said is not None and said != known:
                raise ArtifactError(
                    f"network.{one.name}", known, said, "these weights say what they are; drop the flag"
                )


NOTHING = Declared()
