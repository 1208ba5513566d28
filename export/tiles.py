"""One network exported for several tiles: a whole artifact for each, in one folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import click

from echoir.export.pipeline import Export, export_artifact
from echoir.export.request import Request
from echoir.export.settled import find_tile, pictures_of
from echoir.export.sources import open_source

Sides = tuple[int, int]
# What an export of several tiles leaves, whole or not; killed, the folder that it was at work in.
_OURS = re.compile(r"[0-9]+x[0-9]+(\.failed)?|\.[0-9]+x[0-9]+(\.search\.json|\.(old-)?[a-z0-9_]{8})")


def several(request: Request, tiles: Sequence[Sides | Literal["free"]], fits: Sequence[Sides]) -> list[Request]:
    """The request for each tile, and for each size of picture that a tile is to fit.

    Raises:
        click.UsageError: ``"free"`` beside others: it is every tile already.
    """
    if tiles and fits:
        raise click.UsageError("--fit chooses the tile; drop --tile")
    if "free" in tiles and len(tiles) > 1:
        raise click.UsageError("--tile free is every tile already; drop the others")
    return [replace(request, tile=tile) for tile in tiles] or [replace(request, fit=fit) for fit in fits] or [request]


def export_tiles(
    requests: Sequence[Request], folder: Path, *, log_json: bool = False, quiet: bool = False
) -> Iterator[Export]:
    """Export each into a folder named after its tile, such as ``256x256``; those of an earlier export go.

    Each folder appears whole or not at all, and all tiles are checked before the first is exported. Where two sizes of
    picture are fitted by one tile, it is made once.

    Raises:
        as :func:`echoir.export.pipeline.export_artifact`.
    """
    source = open_source(requests[0].weights, requests[0].network)
    wanted: dict[str, Request] = {}
    for request in requests:
        settled = request.settled(source.descriptor)
        if request.overlap == "auto" and request.fit is not None:
            settled, _ = find_tile(request, source, pictures_of(request, source))
        tile = settled.tile
        assert isinstance(tile, tuple)
        name = f"{tile[0]}x{tile[1]}"
        most = request.most if request.fit is None else None  # it has done its work
        wanted[name] = replace(request, tile=tile, fit=None, most=most, output=folder / name)
    for request in wanted.values():
        yield export_artifact(request, source, log_json=log_json, quiet=quiet)
    for path in [path for path in folder.iterdir() if path.name not in wanted] if is_export(folder) else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_export(folder: Path) -> bool:
    """Whether a folder is an earlier export, of one tile or of several, or a killed one, and holds nothing else."""
    if (folder / "parity.json").is_file():
        return True
    names = [path.name for path in folder.iterdir()]
    whole = any((folder / name / "parity.json").is_file() for name in names)
    return (whole or any(name.startswith(".") for name in names)) and all(map(_OURS.fullmatch, names))
