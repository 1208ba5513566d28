"""Networks that somebody else wrote: checkpoints that spandrel knows, and functions in a file of one's own."""

from __future__ import annotations

import importlib.util
import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from echoir.export.declared import Declared
from echoir.named import find
from echoir.runtime.descriptor import CHANNELS, Descriptor, Planes
from echoir.runtime.errors import ArtifactError, BackendError, needs_extra

PLANES: dict[int, Planes] = {count: planes for planes, count in CHANNELS.items()}
SUFFIXES = (".pth", ".pt", ".ckpt")


def load_foreign(path: Path) -> tuple[nn.Module, Declared, int]:
    """A checkpoint of PyTorch whose architecture spandrel finds by its tensors.

    Tensors alone are read (``weights_only``): nothing in the file is run. What spandrel says of sizes is a hint.

    Returns:
        The network, what is known of it, and what spandrel says its sides are multiples of.

    Raises:
        ArtifactError: no such file, code or objects in it, or weights of a network that spandrel does not know.
        BackendError: spandrel is there and does not import, since torchvision does not fit torch.
        MissingExtraError: spandrel is not installed.
    """
    tensors = _tensors(path)
    try:
        with needs_extra("foreign"), _quiet():
            import spandrel
    except RuntimeError as error:  # from torchvision, as a rule, which is made for one version of torch
        raise BackendError(
            f"spandrel cannot be imported ({error}): install the torchvision that is made for torch {torch.__version__}"
        ) from error
    registry = spandrel.MAIN_REGISTRY.copy()
    try:  # Restormer and others, under licences of their own: used where the user has them
        with _quiet():
            from spandrel_extra_arches import EXTRA_REGISTRY
    except ImportError:
        extra = "; spandrel_extra_arches, if you install it, knows more, such as Restormer"
    else:
        registry.add(*EXTRA_REGISTRY, ignore_duplicates=True)
        extra = ""
    try:
        with _quiet():
            found: Any = spandrel.ModelLoader(registry=registry).load_from_state_dict(tensors)
    except spandrel.UnsupportedModelError:
        hint = f"build the network in Python, and give FILE.py:FUNCTION{extra}"
        raise ArtifactError(
            "weights", f"{path.name}, of no network that spandrel knows", "one that it does", hint
        ) from None
    except (RuntimeError, KeyError, ValueError, AssertionError) as error:  # tensors that do not fit each other
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ArtifactError(
            "weights", f"{path.name}, which does not load ({reason[0]})", "a whole checkpoint"
        ) from None
    if not isinstance(found, spandrel.ImageModelDescriptor):
        raise ArtifactError("network.input", f"{found.architecture.name}, which takes a mask too", "a picture alone")
    said = Declared(
        architecture=found.architecture.name,
        variant=" ".join(found.tags),
        task="sr" if found.purpose in ("SR", "FaceSR") else None,
        input=PLANES.get(found.input_channels),
    )
    return found.model.float().eval(), said, max(1, found.size_requirements.multiple_of)


def load_function(name: str) -> tuple[nn.Module, Descriptor]:
    """What a function of one's own gives: ``FILE.py:FUNCTION``, or ``module:function`` that Python can import.

    Raises:
        ArtifactError: there is none, it fails, or it gives something else.
    """
    where, _, attribute = name.rpartition(":")
    function = find(name, "weights") if not where.endswith(".py") else getattr(_module(Path(where)), attribute, None)
    if function is None:
        raise ArtifactError("weights", name, f"a function in {where}", f"it has no {attribute!r}")
    try:
        made = function()
    except Exception as error:  # whatever a stranger's code may raise
        raise ArtifactError("weights", f"{name}, which fails ({type(error).__name__}: {error})", "a network") from error
    if not (
        isinstance(made, tuple)
        and len(made) == 2
        and isinstance(made[0], nn.Module)
        and isinstance(made[1], Descriptor)
    ):
        kinds = ", ".join(type(part).__name__ for part in made) if isinstance(made, tuple) else type(made).__name__
        hint = "from echoir.runtime.descriptor import Descriptor"
        raise ArtifactError("weights", f"{name} gives {kinds}", "a pair (torch.nn.Module, Descriptor)", hint)
    return made[0].float().eval(), made[1]


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings of a library about its own code are not the user's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _tensors(path: Path) -> dict[str, Any]:
    """The tensors of a checkpoint."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        hint = "nothing of it was run; save the weights alone: torch.save(network.state_dict(), path)"
        named = str(error).partition("Unsupported")[2] or str(error)
        cause = f"objects or code beside its tensors ({' '.join(named.split())[:120]})"
        raise ArtifactError("weights", f"{path.name} with {cause}", "tensors alone", hint) from None
    except Exception as error:  # a zip that is none, a file cut short, a TorchScript archive
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        archive = "TorchScript" in str(error)
        needed = "the weights of a network, not TorchScript's code" if archive else "a checkpoint of PyTorch"
        raise ArtifactError("weights", f"{path.name}, which cannot be read ({reason[:200]})", needed) from None
    if not isinstance(content, dict):
        raise ArtifactError("weights", f"{path.name} holding a {type(content).__name__}", "a dictionary of tensors")
    return content


def _module(path: Path) -> Any:
    """A Python file, run."""
    if not path.is_file():
        raise ArtifactError("weights", f"no file at {path}", "a Python file with a function that makes the network")
    spec = importlib.util.spec_from_file_location(f"own_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)  # behind all others: what lies beside the file can be imported
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a stranger's code may raise
        raise ArtifactError("weights", f"{path}, which fails ({type(error).__name__}: {error})", "a module") from error
    return module
