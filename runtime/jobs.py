"""Restoring many images: in turns, and what happens when one of them fails."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock

from echoir.runtime.contract import Array
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ImageError
from echoir.runtime.forms import form_of_picture, warning
from echoir.runtime.images import MAX_PIXELS, open_picture, picture_size, save_picture
from echoir.runtime.plans import Exists, Failure, Job
from echoir.runtime.progress import Progress
from echoir.runtime.restorer import OnTiles, Restorer
from echoir.runtime.turns import Turn, Turns

# Jobs under way: while one is restored, the one before it is encoded or the one after it decoded.
WORKERS = 2
ALONE = 32_000_000  # pixels, enlarged, from which a picture is worked on by itself, for its memory's sake


@dataclass(frozen=True)
class Restored:
    """An input that was restored.

    Attributes:
        left: what is in its file and not in the new one.
        form: what kind of picture it is, by :func:`echoir.runtime.forms.form_of_picture`.
    """

    left: list[str]
    form: str | None = None


@dataclass
class Report:
    """What became of every input; ``notes`` are lines about what was never one."""

    notes: list[str] = field(default_factory=list)
    restored: list[Job] = field(default_factory=list)
    skipped: list[Job] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    def __str__(self) -> str:
        return f"restored {len(self.restored)}, skipped {len(self.skipped)}, failed {len(self.failed)}"


def restore(
    restorer: Restorer,
    jobs: Sequence[Job],
    report: Report,
    *,
    exists: Exists = "skip",
    upright: bool = False,
    max_pixels: int = MAX_PIXELS,
    log_json: bool = False,
    quiet: bool = False,
) -> None:
    """Do the jobs in order; one that fails does not stop the others.

    One image is restored at a time, while the one before it is encoded or the one after it decoded.

    Args:
        restorer: restores each image.
        jobs: what :func:`echoir.runtime.plans.plan` returned.
        report: filled in as the work goes on, so that it is true after an interruption too.
        exists: what to do where the output is already there. An output appears only when it is
            complete, so ``"skip"`` resumes an interrupted run.
        upright: turn pixels by their EXIF orientation and reset the tag.
        max_pixels: larger images fail, before they are decoded.
        log_json: progress and failures as JSON lines.
        quiet: no progress.

    Raises:
        BackendError: the session broke down, so no further image can be restored.
    """
    todo = list(pending(jobs, report, exists))
    sizes = [_size(job.source, upright, max_pixels) for job in todo]
    # The ETA counts tiles, since images differ in size.
    tiles = [_tiles(restorer, size) for size in sizes]
    with Progress("restore", sum(tiles), "tiles", log_json=log_json, quiet=quiet) as progress:
        telling, remarks = Lock(), Remarks(restorer.manifest.network)

        def note(failure: Failure) -> None:
            if log_json:
                with telling:
                    progress.note(str(failure), **asdict(failure))

        def settle(job: Job, done: Restored | Failure) -> None:
            if isinstance(done, Failure):
                report.failed.append(done)
                note(done)
                return
            report.restored.append(job)
            for line in () if quiet else remarks(done):
                with telling:
                    progress.note(f"{job.source}: {line}", source=str(job.source))

        def tell(number: int, done: int | None) -> None:
            """So many tiles of a job are done; None: it is over."""
            with telling:
                before = sum(tiles[:number])
                progress.advance(
                    before + (tiles[number] if done is None else done) - progress.done, file=str(todo[number].source)
                )

        for line in () if quiet else report.notes:
            progress.note(line)
        for failure in report.failed:
            note(failure)
        turns = Turns(ImageError, MemoryError)
        with ThreadPoolExecutor(WORKERS) as pool:
            futures: list[Future[Restored | Failure]] = []
            for number, (job, size) in enumerate(zip(todo, sizes, strict=True)):
                alone = size is None or size[0] * size[1] * restorer.manifest.network.scale**2 > ALONE
                turn = Turn(turns, number, alone, partial(tell, number))
                futures.append(pool.submit(_in_turn, restorer, job, turn, upright, max_pixels))
            rest = deque(zip(todo, futures, strict=True))
            try:
                while rest:
                    job, future = rest[0]
                    settle(job, future.result())
                    rest.popleft()
            except BaseException:
                turns.stop()
                pool.shutdown(cancel_futures=True)
                for job, future in rest:  # what was being encoded is whole
                    if not future.cancelled() and future.exception() is None:
                        settle(job, future.result())
                raise
        progress.fields.pop("file", None)
        progress.advance(0, restored=len(report.restored), skipped=len(report.skipped), failed=len(report.failed))


class Remarks:
    """What there is to say of pictures that were restored; that a network does not know a kind of them, once a kind."""

    def __init__(self, network: Descriptor) -> None:
        self._network, self._said = network, set[str | None]()

    def __call__(self, done: Restored) -> Iterator[str]:
        """Lines about one."""
        if done.left:
            yield f"not carried over: {', '.join(done.left)}"
        if done.form not in self._said and (line := warning(done.form, self._network)) is not None:
            self._said.add(done.form)
            yield line


def pending(jobs: Sequence[Job], report: Report, exists: Exists) -> Iterator[Job]:
    """The jobs that are left to do, after those whose outputs are there."""
    for job in jobs:
        # An input that is gone is a failure even if it was restored once.
        if exists == "overwrite" or not os.path.isfile(job.target) or not os.path.exists(job.source):
            yield job
        elif exists == "skip":
            report.skipped.append(job)
        else:
            report.failed.append(Failure(str(job.source), f"the output {job.target} exists already (--exists error)"))


def _size(source: Path, upright: bool, max_pixels: int) -> tuple[int, int] | None:
    """Height and width of an image by its header; None for what will turn out unreadable."""
    try:
        height, width = picture_size(source, upright=upright)
    except ImageError:
        return None
    return (height, width) if height * width <= max_pixels else None


def _tiles(restorer: Restorer, size: tuple[int, int] | None) -> int:
    """Tiles of a picture of a size; zero for what will turn out unreadable, or not to fit the network."""
    channels = 1 if restorer.manifest.network.input == "RGGB" else 3  # here any other picture is like RGB
    try:
        return restorer.tiles(*size, channels) if size else 0
    except ImageError:
        return 0


def restore_one(
    restorer: Restorer,
    job: Job,
    *,
    upright: bool = False,
    max_pixels: int = MAX_PIXELS,
    on_tiles: OnTiles | None = None,
    take: Callable[[Iterator[Array]], Iterator[Array]] = iter,
) -> Restored:
    """Restore an image.

    Args:
        upright, max_pixels: as for :func:`restore`.
        on_tiles: told (tiles done, tiles in all) as the work goes on.
        take: goes through the restored rows, and so says when that part of the work is done.

    Raises:
        ImageError: the image cannot be read or restored, or its output cannot be written.
    """
    picture = open_picture(job.source, max_pixels=max_pixels, upright=upright)
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"cannot create the folder {job.target.parent}: {error.strerror or error}") from error
    try:
        way = restorer.route(picture.channels)
        way.size(picture.height, picture.width)
    except ImageError as error:
        raise ImageError(f"cannot restore {job.source}: {error}") from None
    rows = restorer.strips(
        picture.read_rows, picture.height, picture.width, channels=picture.channels, on_tiles=on_tiles
    )
    save_picture(job.target, take(rows), picture, scale=way.scale, channels=way.result)
    return Restored(picture.left_behind(job.target), form_of_picture(picture))


def _in_turn(restorer: Restorer, job: Job, turn: Turn, upright: bool, max_pixels: int) -> Restored | Failure:
    """:func:`restore_one`; what goes wrong with the image is an answer, since an exception would hold its file open."""
    try:
        with turn:
            return restore_one(
                restorer,
                job,
                upright=upright,
                max_pixels=max_pixels,
                on_tiles=lambda done, total: turn.tell(done),
                take=turn.take,
            )
    except (ImageError, MemoryError) as error:
        return Failure(str(job.source), str(error) or "out of memory")
