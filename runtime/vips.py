"""libvips, set up once: its threads, its errors as a line, and its names for what is in a file."""

from __future__ import annotations

import os
from contextlib import suppress
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

from echoir.runtime.errors import BackendError
from echoir.runtime.tags import scaled_exif

if TYPE_CHECKING:
    import pyvips


@cache
def vips() -> Any:
    """pyvips, set up once."""
    # No Python runs inside libvips: pyvips would log its warnings there, where an interrupt gets lost and a
    # warning that is not UTF-8 prints a traceback. Errors are raised; warnings are about tolerable files.
    os.environ.setdefault("VIPS_WARNING", "0")
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise BackendError(f"pyvips cannot be imported ({error}); run: pip install 'pyvips[binary]'") from error
    pyvips._remove_log_handler()
    pyvips.cache_set_max(0)  # it would give a file's old pixels after the file has changed
    return pyvips


_threads_ran = _threads_lost = False


def use_threads() -> None:
    """libvips keeps its threads, does not notice that fork leaves them behind, and would wait for them forever.

    Raises:
        BackendError: in a process that was forked from one where pictures were read or written.
    """
    global _threads_ran
    if _threads_lost:
        raise BackendError(
            "this process was forked from one that had read or written pictures, and libvips' threads stayed there; "
            "start processes with multiprocessing's 'spawn' or 'forkserver'"
        )
    _threads_ran = True


def _note_fork() -> None:
    global _threads_ran, _threads_lost
    _threads_ran, _threads_lost = False, _threads_ran or _threads_lost


os.register_at_fork(after_in_child=_note_fork)


def cause_of(error: pyvips.Error | UnicodeDecodeError) -> str:
    """What libvips says in several lines, as one: the system's reason if there is one, else all of it."""
    if isinstance(error, UnicodeDecodeError):  # pyvips cannot quote a file's own words unless they are UTF-8
        return error.object.decode("ascii", "replace")
    lines = [line.strip() for line in str(error.detail or error.message).splitlines()]
    for line in lines:
        if line.startswith("system error: "):
            return line.removeprefix("system error: ")
    return "; ".join(dict.fromkeys(line for line in lines if line))


def not_of_the_file(cause: str) -> bool:
    """Whether what libvips could not do is for want of memory: another picture may do.

    Raises:
        BackendError: it is for want of threads, which every picture needs.
    """
    if "creating thread" in cause:
        raise BackendError(
            f"libvips cannot start its threads ({cause}); does a limit of processes or of memory forbid it?"
        )
    return "out of memory" in cause


def fields_of(image: pyvips.Image) -> list[str]:
    """Names of fields; pyvips' own way to them fails on names that are not UTF-8, as a PNG's may be."""
    names: list[str] = []
    ffi = vips().ffi
    array = vips().vips_lib.vips_image_get_fields(image.pointer)
    while array[len(names)] != ffi.NULL:
        names.append(ffi.string(array[len(names)]).decode("utf-8", "surrogateescape"))
        vips().glib_lib.g_free(array[len(names) - 1])
    vips().glib_lib.g_free(array)
    return names


def encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


@cache
def header_fields() -> frozenset[str]:
    """What every libvips image has: its shape and the like, no metadata."""
    return frozenset(fields_of(vips().Image.black(1, 1))) | {"filename"}


def scaled_fields(
    metadata: dict[str, pyvips.GValue], scale: float, height: int, width: int
) -> dict[str, pyvips.GValue]:
    """The fields of EXIF that say of an enlarged picture what they said of the picture before."""
    new = {}
    for name in ("ifd0-XResolution", "ifd0-YResolution", "ifd2-FocalPlaneXResolution", "ifd2-FocalPlaneYResolution"):
        if (value := metadata.get(f"exif-{name}")) is not None:
            with suppress(ValueError, ZeroDivisionError):
                density = Fraction(value.get().partition(" ")[0]) * Fraction(scale)
                new[f"exif-{name}"] = _gvalue(vips().GValue.gstr_type, str(density.limit_denominator(2**16)))
    if "exif-data" in metadata:
        exif = scaled_exif(metadata["exif-data"].get(), scale, height, width)
        new["exif-data"] = _gvalue(vips().GValue.blob_type, exif)
    return {**metadata, **new}


def _gvalue(kind: int, content: str | bytes) -> pyvips.GValue:
    value = vips().GValue()
    value.set_type(kind)
    value.set(content)
    return value
