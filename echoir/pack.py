"""Folders of training pictures as one file that travels: a ZIP of pictures, small enough to copy anywhere."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from PIL import Image

from echoir.data import Picture, list_pictures, read_rgb
from echoir.runtime.errors import ImageError
from echoir.runtime.files import atomic_write

_EPOCH = (1980, 1, 1, 0, 0, 0)  # so that the same pictures give the same file
_ENCODERS = 2


def pack(folders: Sequence[Path], path: Path, quality: int = 95, lossy_pairs: bool = False) -> int:
    """Write the pictures of folders into one file.

    Clean pictures become JPEG of ``quality`` with all of their chroma, or stay the JPEG they are. Both
    pictures of a pair are kept to the bit, since a codec may change what the pair is about.

    Args:
        folders: as ``echoir train`` takes them, each by itself pictures or pairs.
        path: the file to write; it appears whole or not at all.
        quality: 1 to 100.
        lossy_pairs: treat pairs as clean pictures, for want of room.

    Returns:
        How many pictures, a pair counting as one.

    Raises:
        ImageError: a folder without pictures, or a file that cannot be read.
    """
    count = 0
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for number, folder in enumerate(folders):
            top = PurePosixPath(f"{number}-{folder.resolve().name}")
            pictures = list_pictures([folder])
            count += len(pictures)
            with ThreadPoolExecutor(_ENCODERS) as pool:
                parts = [part for picture in pictures for part in _parts(picture, folder)]
                lossy = [quality if lossy_pairs or not pair else None for _, _, pair in parts]
                sources = [source for _, source, _ in parts]
                for (name, _, _), (suffix, data) in zip(parts, pool.map(_encoded, sources, lossy), strict=True):
                    archive.writestr(zipfile.ZipInfo(str((top / name).with_suffix(suffix)), _EPOCH), data)
    return count


def data_folders(given: tuple[str, ...]) -> list[Path]:
    """Folders and packed files named on the command line, else in ``ECHOIR_DATA`` (separated by the path separator).

    Raises:
        ImageError: a file that ``echoir pack`` did not write.
    """
    named = list(given) or [part for part in os.environ.get("ECHOIR_DATA", "").split(os.pathsep) if part]
    folders: list[Path] = []
    for path in map(Path, named):
        folders += unpacked(path) if path.is_file() else [path]
    return folders


def unpacked(path: Path) -> list[Path]:
    """The folders of a packed file, in a temporary place that goes with the process.

    Raises:
        ImageError: not such a file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            holder = tempfile.TemporaryDirectory(prefix="echoir-pictures-")
            _HELD.append(holder)
            archive.extractall(holder.name)
    except (OSError, zipfile.BadZipFile) as error:
        raise ImageError(f"{path}: not a file that echoir pack wrote ({error})") from None
    return sorted(Path(entry.path) for entry in os.scandir(holder.name) if entry.is_dir())


_HELD: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def _parts(picture: Picture, folder: Path) -> Iterator[tuple[PurePosixPath, Path, bool]]:
    """(name inside, file, whether it belongs to a pair)"""
    if picture.degraded is None:
        yield PurePosixPath(picture.clean.relative_to(folder)), picture.clean, False
    else:
        for path in (picture.degraded, picture.clean):
            yield PurePosixPath(path.relative_to(folder)), path, True


def _encoded(source: Path, quality: int | None) -> tuple[str, bytes]:
    """The suffix and the bytes of a picture inside; no quality: as it is."""
    if quality is None or source.suffix.lower() in (".jpg", ".jpeg"):
        return source.suffix, source.read_bytes()
    stream = io.BytesIO()
    Image.fromarray(read_rgb(source)).save(stream, "JPEG", quality=quality, subsampling=0)
    return ".jpg", stream.getvalue()
