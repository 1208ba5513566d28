"""The tile and the overlap of an export: chosen, found where that is asked for, and measured against whole pictures."""

from __future__ import annotations

from dataclasses import replace

from echoir.data import Say
from echoir.export.proof.overlap import find_overlap, measure_seam, why_not
from echoir.export.proof.seam import ADVICE, Seam
from echoir.export.request import OVERLAP, Request
from echoir.export.sources import Source
from echoir.runtime.manifest import Tile
from echoir.runtime.progress import Progress
from echoir.samples import Several, proof_samples


def pictures_of(request: Request, source: Source, say: Say = lambda _: None) -> Several:
    """The pictures that an export is measured on; as :func:`echoir.samples.proof_samples`."""
    return proof_samples(
        request.images,
        source.descriptor.task,
        forms=request.forms,
        sigmas=request.sigmas,
        limit=request.limit,
        network=source.descriptor,
        say=say,
    )


def settle(
    request: Request, source: Source, samples: Several, *, log_json: bool = False, quiet: bool = False
) -> tuple[Request, Seam | None, list[str]]:
    """The request with its tiles as they will be, how far those are from whole pictures, and what there is to say.

    Raises:
        as :func:`find_tile`.
    """
    notes, advice = [], ADVICE
    with Progress("seam", 1, "steps", log_json=log_json, quiet=quiet) as progress:
        if request.overlap != "auto":
            settled = request.settled(source.descriptor)
        else:
            settled, best = find_tile(request, source, samples)
            if best is None:
                notes.append(
                    f"overlap {settled.overlap}, the least: from {settled.margin} pixels inside its edge on, a tile is "
                    "as in the whole picture"
                )
            else:
                sides = " x ".join(map(str, settled.tile or ()))
                cause = "give a larger --tile" if source.descriptor.local else "the network looks at its whole tile"
                advice = f"no overlap makes tiles of {sides} as the whole picture: {cause}"
                notes.append(
                    f"overlap {settled.overlap}: {advice}; far from their edges too they are {best:.2f} dB off"
                )
        assert isinstance(settled.tile, tuple)
        assert isinstance(settled.overlap, int)
        tile = Tile(*settled.tile, settled.overlap, settled.batch, margin=settled.margin)
        least, threads = request.min_seam, request.threads
        seam = measure_seam(source, samples, tile, least=least, threads=threads, advice=advice)
        progress.advance()
    if seam is None:
        notes.append(f"tiles were not compared with whole pictures: {why_not(source)}")
    return settled, seam, notes


def find_tile(request: Request, source: Source, samples: Several) -> tuple[Request, float | None]:
    """The request with the least overlap, and with ``--fit`` the tile that fits for it.

    Which tile fits depends on the overlap, and the least overlap on the tile: each is found for the other until both
    stay.

    Returns:
        The settled request; and where no overlap is enough (it then is the usual one, or half the tile), how near a
        tile is to the whole picture at best, in dB.

    Raises:
        ArtifactError: the network gives no pictures.
        BackendError: no picture goes through the network in one piece.
        ImageError: a picture cannot be read.
        click.BadParameter: a tile that the network does not take.
    """
    network, tried = source.descriptor, set()
    settled = request.settled(network)
    while True:
        assert isinstance(settled.tile, tuple)
        tried.add(settled.tile)
        tile = Tile(*settled.tile, 0, settled.batch)
        found = find_overlap(source, samples, tile, least=request.min_seam, threads=request.threads)
        if not isinstance(found, Tile):
            possible = (min(side // 2, side - phase) for side, phase in zip(settled.tile, network.phase, strict=True))
            return replace(settled, overlap=max(network.overlap, min(OVERLAP, *possible))), found
        again = replace(request, overlap=found.overlap, margin=found.margin).settled(network)
        if again.tile == settled.tile:
            return again, None
        if again.tile in tried:  # two tiles that each ask for the other: what was measured holds
            return replace(settled, overlap=found.overlap, margin=found.margin), None
        settled = again
