"""Which file becomes which: inputs as people name them, and an output for each picture in them."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from echoir.runtime.folders import UNREAD, Found, find_pictures, is_within, name_unread
from echoir.runtime.picture import READABLE, WRITABLE

Exists = Literal["skip", "overwrite", "error"]


class PlanError(Exception):
    """A request that makes no sense as a whole; nothing was read or written. A usage error."""


@dataclass(frozen=True)
class Job:
    """One image to restore and where its result goes."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Failure:
    """An input that was not restored, and why."""

    source: str
    cause: str

    def __str__(self) -> str:
        return self.cause if self.source in self.cause else f"{self.source}: {self.cause}"


@dataclass(frozen=True)
class Naming:
    """How outputs in a folder are named.

    Args:
        suffix: put between name and extension.
        extension: of every output, with its dot; None keeps an input's own, where it is an image's.
    """

    suffix: str = ""
    extension: str | None = None

    def __call__(self, path: Path) -> Path:
        extension = self.extension or (path.suffix if path.suffix.lower() in WRITABLE else ".png")
        return path.with_name(f"{path.stem}{self.suffix}{extension}")


def plan(
    inputs: Sequence[str],
    output: str,
    naming: Naming = Naming(),
    exists: Exists = "skip",
    say: Callable[[str], None] = lambda _: None,
) -> tuple[list[Job], list[Failure]]:
    """Pair every image with its output.

    Files keep their names; folders and patterns their trees, relative to the folder or to the part of
    the pattern before its first wildcard. Folders are walked in name order, as
    :func:`echoir.runtime.folders.find_pictures` does. The output folder is left out where it lies inside an input,
    and so is every file found that is an output of this very plan: ``restore s -o s --suffix _clean`` resumes.

    Args:
        inputs: files, folders, and glob patterns (``**`` crosses folders). What exists under its literal
            name is never taken for a pattern.
        output: a folder; or, for one input that is a file, a name with an image's extension.
        naming: of outputs in a folder.
        exists: with ``"overwrite"``, a file named as both input and output replaces itself.
        say: told, in a line each, what was found and is no input.

    Returns:
        The jobs in order, and a failure for each input that leads to no image.

    Raises:
        PlanError: two inputs with one output, an output that would replace an input, a file name
            as the output of anything but one file, or a suffix that is no part of a name.
    """
    if not output or not all(inputs):  # what a shell makes of a variable that is not set; Path would take it for "."
        raise PlanError("the name of an input or of the output is empty")
    out = Path(output)
    as_file = _is_file_name(inputs, output)
    if as_file and naming != Naming():
        raise PlanError(f"{output} is a file name; a suffix or a format applies to outputs in a folder")
    if os.sep in naming.suffix or "\0" in naming.suffix:
        raise PlanError(f"{naming.suffix!r} cannot be part of a file's name; a folder goes into the output")
    jobs: dict[tuple[str, str], Job] = {}  # an input given twice is one job, however it is spelt
    named: set[str] = set()
    failures: list[Failure] = []
    unread: set[Path] = set()
    for given in inputs:
        root, found = _find(given, out)
        unread |= found.unread
        failures += [Failure(str(e.filename), f"the folder cannot be read: {e.strerror}") for e in found.unreadable]
        if not (found.pictures or found.unreadable):
            rest = f" that is read ({name_unread(found.unread)} left out)" if found.unread else ""
            failures.append(Failure(given, ("holds no image" if os.path.isdir(given) else "matches no image") + rest))
        for source in found.pictures:
            job = Job(source, out if as_file else out / naming(source.relative_to(root)))
            jobs.setdefault((os.path.realpath(source), os.path.realpath(job.target)), job)
        if not (os.path.isdir(given) or _is_pattern(given)):
            named.add(os.path.realpath(given))
    if unread:
        say(f"{name_unread(unread)} left out, of types that are not read")
    kept = _without_outputs(jobs, named)
    if dropped := len(jobs) - len(kept):
        say(f"{dropped} left out as outputs of this very command")
    _refuse_collisions(kept, may_replace_itself=as_file and exists == "overwrite")
    return kept, failures


def _without_outputs(jobs: Mapping[tuple[str, str], Job], named: Set[str]) -> list[Job]:
    """The jobs whose sources no other job makes: an earlier run of the same command did. Real paths are compared."""
    makers: dict[str, list[str]] = {}
    for source, target in jobs:
        if source != target:
            makers.setdefault(target, []).append(source)
    inputs: dict[str, bool] = {}

    def is_input(path: str) -> bool:
        if path not in inputs:
            inputs[path] = True  # settles a circle, which _refuse_collisions will refuse
            inputs[path] = path in named or not any(is_input(maker) for maker in makers.get(path, ()))
        return inputs[path]

    return [job for (source, _), job in jobs.items() if is_input(source)]


def _is_file_name(inputs: Sequence[str], output: str) -> bool:
    """Whether the output is to be a file, not a folder; refuses what could only be a mistake."""
    out = Path(output)
    if os.path.isdir(out) or output.endswith(os.sep):
        return False
    one_file = len(inputs) == 1 and not os.path.isdir(inputs[0]) and not _is_pattern(inputs[0])
    image = out.suffix.lower() in WRITABLE
    if one_file and out.suffix and not image:
        raise PlanError(
            f"{output} is no image that can be written ({', '.join(WRITABLE)}); a folder's name ends in {os.sep}"
        )
    if not one_file and (image or os.path.exists(out)):
        raise PlanError(f"{output} is a file, and the input is not one file; name a folder")
    return image or os.path.exists(out)


def _is_pattern(given: str) -> bool:
    return glob.has_magic(given) and not os.path.lexists(given)


def _find(given: str, out: Path) -> tuple[Path, Found]:
    """The pictures of one input, and the folder that their places in the tree are relative to."""
    path = Path(given)
    if os.path.isdir(path):
        return path, find_pictures(path, without=out)
    if not _is_pattern(given):
        return path.parent, Found([path])  # whether it is there and an image shows when it is read
    root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
    own = {os.path.realpath(out)} - {os.path.realpath(root)}
    inside = own if is_within(out, {os.path.realpath(root)}) else set()
    found = Found()
    for match in map(Path, sorted(glob.glob(given, recursive=True))):
        suffix = match.suffix.lower()
        if is_within(match, inside):
            continue
        if os.path.isdir(match):
            below = find_pictures(match, without=out)
            found.pictures += below.pictures
            found.unread |= below.unread
            found.unreadable += below.unreadable
        elif suffix in READABLE:
            found.pictures.append(match)
        elif suffix in UNREAD:
            found.unread.add(match)
    return root, found


def _refuse_collisions(jobs: Sequence[Job], *, may_replace_itself: bool) -> None:
    sources = {os.path.realpath(job.source) for job in jobs}
    claimed: dict[str, Path] = {}
    for job in jobs:
        target = os.path.realpath(job.target)
        if target in claimed:
            raise PlanError(
                f"{claimed[target]} and {job.source} would both become {job.target}; "
                "restore them into different folders, or give their common folder to keep its tree"
            )
        claimed[target] = job.source
        if target in sources and not may_replace_itself:
            raise PlanError(
                f"{job.target} is an input and would be replaced; use another folder or --suffix "
                "(one file replaces itself if it is named as the output, with --exists overwrite)"
            )


def part_of(jobs: Sequence[Job], output: str, index: int, count: int) -> list[Job]:
    """One part of a plan: the parts are the same on every machine, and every job is in exactly one.

    The name of an output below the output folder decides, by its SHA-256: neither the order of the jobs nor where the
    folders are mounted nor what else is in them matters, so parts stay parts when pictures come and go.

    Args:
        output: what :func:`plan` was given.
        index: of the part, 1 to ``count``.
        count: of parts.
    """

    def part(job: Job) -> int:
        name = os.path.relpath(job.target, output)
        return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest(), "big") % count

    return [job for job in jobs if part(job) == index - 1]
