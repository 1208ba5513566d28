"""Pictures to train and to measure on: folders of clean ones, and of pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from echoir.runtime.errors import ImageError
from echoir.runtime.folders import find_pictures, name_unread
from echoir.runtime.images import Header, open_picture, read_header
from echoir.runtime.picture import READABLE

T = TypeVar("T")
# How the field names the two folders of a pair, in any case.
DEGRADED = frozenset({"input", "blur", "lq", "noisy", "rain"})
CLEAN = frozenset({"target", "sharp", "gt", "clean", "norain"})
Say = Callable[[str], None]


@dataclass(frozen=True)
class Picture:
    """A picture to train on: a clean one, and what the world made of it if that is known.

    ``root`` is a folder above it, below which no two have one path.
    """

    clean: Path
    degraded: Path | None = None
    root: Path | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The path below ``root``: pictures of one file name in several folders are told apart."""
        path = self.clean if self.degraded is None else self.degraded
        return path.name if self.root is None else path.relative_to(self.root).as_posix()


def list_pictures(folders: Iterable[Path], say: Say = lambda _: None) -> list[Picture]:
    """Everything below some folders: pairs where there are pairs, and clean pictures.

    A folder that holds one subfolder of a name in :data:`DEGRADED` and one in :data:`CLEAN` holds pairs: the
    pictures in them of equal path, without suffix. What else lies below it is left out (GoPro's ``blur_gamma``).
    All other pictures are clean ones.

    Args:
        folders: to be searched, as :func:`echoir.runtime.folders.find_pictures` does; whatever their own names.
        say: told, in a line each, which folders were taken for pairs and what was left out.

    Raises:
        ImageError: a folder is missing, unreadable or without a picture; degraded pictures without clean ones or
            clean ones without degraded ones; a picture without its other half; or several that could be it.
    """
    pictures: list[Picture] = []
    for folder in folders:
        pictures += _list_folder(folder, say)
    return pictures


def find_pairs(folder: Path, say: Say = lambda _: None) -> list[Picture]:
    """The pairs below a folder; none if it holds clean pictures.

    Raises:
        ImageError: as :func:`list_pictures`; or it holds both, and which are meant is not known.
    """
    pictures = _list_folder(folder, say)
    pairs = [picture for picture in pictures if picture.degraded is not None]
    if pairs and len(pairs) < len(pictures):
        lonely = next(picture.clean for picture in pictures if picture.degraded is None)
        raise ImageError(f"{folder}: holds pairs, and pictures besides ({lonely}); name the folder of one kind")
    return pairs


def check_pictures(pictures: Iterable[Picture], enlargement: int = 1) -> None:
    """Open every file, so that one that cannot be used is known before hours of work.

    Headers alone are decoded, and that the file ends where its pixels do; damage between is found by decoding.

    Raises:
        ImageError: a file that cannot be read or is cut short, or a pair whose two pictures do not lie on each other.
    """
    for picture in pictures:
        clean = read_header(picture.clean)
        if picture.degraded is not None:
            check_pair(picture, read_header(picture.degraded), clean, enlargement)


def check_pair(picture: Picture, degraded: Header, clean: Header, enlargement: int = 1) -> None:
    """Refuse a pair whose two pictures do not lie on each other, the clean one so many times as large, each side.

    Raises:
        ImageError: they differ in size as they are shown; or in orientation alone, where nothing tells whether
            the pixels were turned or the tag was lost.
    """
    if (enlargement * degraded.height, enlargement * degraded.width) != (clean.height, clean.width):
        needed = "a pair must be of one size"
        if enlargement > 1:
            needed = f"the network enlarges {enlargement} times, and so must the pair"
        raise ImageError(
            f"{picture.degraded} and {picture.clean} differ in size, {degraded.width} x {degraded.height} and "
            f"{clean.width} x {clean.height}; {needed}"
        )
    large = enlargement * degraded.stored[0], enlargement * degraded.stored[1]
    if degraded.orientation != clean.orientation and large == clean.stored:
        raise ImageError(
            f"{picture.degraded} and {picture.clean} differ in orientation, {degraded.orientation} and "
            f"{clean.orientation}, but not in size: was one turned, or did one lose its tag? Make them agree"
        )


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """A picture's colours in 8 bits as it is shown, [H, W, 3]: upright, gray in three channels, without alpha.

    Raises:
        ImageError: as :func:`echoir.runtime.images.open_picture`.
    """
    pixels = open_picture(path, upright=True).rgb
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # the nearest: 65535 is 255 * 257
    return pixels


def read_float(path: Path) -> NDArray[np.float32]:
    """The same as float32 in [0, 1], with all the depth that the file has.

    Raises:
        ImageError: as :func:`read_rgb`.
    """
    return to_float(open_picture(path, upright=True).rgb)


def to_float(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.float32]:
    """8-bit or 16-bit codes to float32 in [0, 1]."""
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def split(pictures: Sequence[T], holdout: int, seed: int) -> tuple[list[T], list[T]]:
    """Set ``holdout`` pictures aside, by a shuffle that ``seed`` fixes; returns (training, held out).

    Raises:
        ImageError: too few pictures to train on the rest.
    """
    if len(pictures) <= holdout:
        raise ImageError(f"{len(pictures)} pictures are too few to hold {holdout} out")
    order = np.random.default_rng(seed).permutation(len(pictures))
    held = set(order[:holdout].tolist())
    return [p for i, p in enumerate(pictures) if i not in held], [p for i, p in enumerate(pictures) if i in held]


def _list_folder(folder: Path, say: Say) -> list[Picture]:
    """Pairs and clean pictures below one folder."""
    if not folder.is_dir():
        raise ImageError(f"{folder}: not a folder")
    found = find_pictures(folder)
    for error in found.unreadable:
        raise ImageError(f"{error.filename}: the folder cannot be read: {error.strerror}")
    unread = f"{name_unread(found.unread)} left out, of types that are not read" if found.unread else ""
    if not found.pictures:
        raise ImageError(f"{folder}: no picture ({', '.join(READABLE)})" + (f"; {unread}" if unread else ""))
    if unread:
        say(f"{folder}: {unread}")

    halves: dict[Path, dict[str, list[Path]]] = {}  # by the folder that holds them, then by the subfolder's name
    others: list[Path] = []
    for path in found.pictures:
        parts = path.relative_to(folder).parts
        depth = next((i for i, part in enumerate(parts[:-1]) if part.lower() in DEGRADED | CLEAN), None)
        if depth is None:
            others.append(path)
        else:
            halves.setdefault(folder.joinpath(*parts[:depth]), {}).setdefault(parts[depth], []).append(path)

    pairs: list[Picture] = []
    taken: Counter[tuple[str, str]] = Counter()
    homes: set[Path] = set()
    for home, named in halves.items():
        degraded, clean = ([name for name in named if name.lower() in kind] for kind in (DEGRADED, CLEAN))
        if not degraded and [name.lower() for name in clean] == ["clean"]:
            others += named[clean[0]]  # a folder of clean pictures says so; any other such name wants its partner
            continue
        if len(degraded) != 1 or len(clean) != 1:
            raise ImageError(_not_a_pair(home, degraded, clean))
        root = home / degraded[0]
        these = _match(root, named[degraded[0]], home / clean[0], named[clean[0]])
        these = [replace(pair, root=root if home == folder else folder) for pair in these]
        taken[degraded[0], clean[0]] += len(these)
        homes.add(home)
        pairs += these
    beside = [path for path in others if homes.intersection(path.parents)]
    for (degraded_name, clean_name), count in taken.items():
        say(f"{folder}: {count} pairs, {degraded_name}/ and {clean_name}/")
    if beside:
        say(f"{folder}: {len(beside)} pictures beside the pairs left out ({beside[0]})")
    return [*pairs, *(Picture(path, root=folder) for path in sorted(set(others) - set(beside)))]


def _not_a_pair(home: Path, degraded: list[str], clean: list[str]) -> str:
    """Why folders of the usual names are not taken for pairs."""
    if degraded and clean:
        names = ", ".join(f"{name}/" for name in sorted([*degraded, *clean]))
        return f"{home}: holds {names}, and which two are the pairs is not known; name a folder that holds only those"
    here, missing = (degraded or clean), sorted(CLEAN if degraded else DEGRADED)
    return (
        f"{home / here[0]}: half of the pairs, without the other half beside it ({', '.join(missing)}); "
        "if these are clean pictures, name this folder itself"
    )


def _match(degraded: Path, inputs: list[Path], clean: Path, targets: list[Path]) -> list[Picture]:
    """Pairs of equal path below the two folders, without suffix."""
    sides = []
    for root, paths in ((degraded, inputs), (clean, targets)):
        by_name: dict[Path, Path] = {}
        for path in paths:
            name = path.relative_to(root).with_suffix("")
            if name in by_name:
                raise ImageError(f"{by_name[name]} and {path} are of one name; which belongs to the pair is not known")
            by_name[name] = path
        sides.append(by_name)
    for (root, mine), (other, theirs) in (
        ((degraded, sides[0]), (clean, sides[1])),
        ((clean, sides[1]), (degraded, sides[0])),
    ):
        if lonely := [path for name, path in mine.items() if name not in theirs]:
            names = ", ".join(str(path.relative_to(root)) for path in lonely[:5])
            more = f" and {len(lonely) - 5} more" if len(lonely) > 5 else ""
            raise ImageError(f"{other}: no picture for {names}{more} of {root.name}/, by path without suffix")
    return [Picture(sides[1][name], path) for name, path in sides[0].items()]
