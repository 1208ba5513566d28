"""Parts of a run that are one's own, named as ``module:attribute``, as entry points are."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

UNNAMED = "an object without a name"


def is_own(name: str) -> bool:
    """Whether a name is that of one's own part, and not one of the project's."""
    return ":" in name


def find(name: str, field: str) -> Any:
    """The object that ``module:attribute`` names; modules in the working folder are found, too.

    Importing runs the module, so such names come from recipes and command lines, never from weights.

    Args:
        name: such as ``"my_losses:edges"``.
        field: what is named, for messages.

    Raises:
        click.BadParameter: no such module, or no such attribute in it; the field is named.
    """
    module, _, attribute = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # behind all others, so that it shadows nothing
    try:
        found: Any = import_module(module)
    except (ImportError, ValueError) as error:
        raise click.BadParameter(f"{field}: {name!r}: {error}") from None
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise click.BadParameter(f"{field}: {name!r}: module {module} has no {attribute!r}") from None
    return found


def name_of(part: Any) -> str:
    """``module:attribute`` of a function or class; :data:`UNNAMED` for what cannot be found by a name again.

    That is what a script itself holds (``__main__``), what a function made, and instances.
    """
    module, path = getattr(part, "__module__", None), getattr(part, "__qualname__", "<instance>")
    if not isinstance(module, str) or module == "__main__" or "<" in path:
        return UNNAMED
    found: Any = sys.modules.get(module)
    for name in path.split("."):
        found = getattr(found, name, None)
    return f"{module}:{path}" if found is part else UNNAMED
