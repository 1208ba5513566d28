"""A shipped checkpoint where an artifact is wanted: exported once, into a cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click

from echoir import __version__
from echoir.checkpoint import find_checkpoint
from echoir.export.lowering import lowering_of
from echoir.export.pipeline import export_artifact
from echoir.export.request import Request
from echoir.export.sources import open_source
from echoir.runtime.artifact import Artifact
from echoir.runtime.caches import cache_folder
from echoir.runtime.errors import ArtifactError
from echoir.runtime.files import sha256_file


def cached_artifact(name: str, say: Callable[[str], None], quiet: bool) -> Path:
    """The folder of a float32 artifact of a shipped checkpoint, which is made if there is none.

    Its tiles are free where its network takes any size. It has passed its gate, on one of the shipped pictures.
    Exports of the same checkpoint by other versions go.

    Args:
        name: such as ``"denoise"``.
        say: told where it is, and that it is being made.
        quiet: show no progress.

    Raises:
        EchoIRError: as :func:`echoir.export.pipeline.export_artifact`.
    """
    checkpoint = find_checkpoint(name)
    root = cache_folder("exports")
    folder = root / f"{name}-{sha256_file(checkpoint)[:12]}-{__version__}"
    with suppress(ArtifactError):
        Artifact.open(folder)
        say(f"{name} is a checkpoint; using its float32 export in {folder}")
        return folder
    say(f"{name} is a checkpoint; exporting it once, in float32, to {folder}: a minute or more")
    for other in root.glob(f"{name}-{'[0-9a-f]' * 12}-*"):
        shutil.rmtree(other, ignore_errors=True)
    source = open_source(name)
    free = lowering_of(source.descriptor.architecture).free
    request = Request(
        weights=name, precision="fp32", targets=("onnx",), tile="free" if free else None, limit=1, output=folder
    )
    try:
        export_artifact(request, source, quiet=quiet)
    except click.ClickException as error:  # nothing that was given can be wrong
        raise AssertionError(str(error)) from error
    return folder
