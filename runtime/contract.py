"""What a session is: it runs batches of tiles through a model. One contract, one class per backend.

A session takes and gives whole batches in its manifest's layout and type; what tiles are and how
they become an image is :mod:`echoir.runtime.restorer`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from echoir.runtime.channels import Route
from echoir.runtime.errors import ArtifactError
from echoir.runtime.manifest import Manifest, Role
from echoir.runtime.tiling import Axis

if TYPE_CHECKING:
    from typing_extensions import Self

Device = Literal["auto", "cpu", "cuda", "openvino", "openvino-bf16"]
Array = np.ndarray[Any, np.dtype[Any]]
ReadStrip = Callable[[int], Array]


@dataclass(frozen=True)
class Strip:
    """One strip of tiles, done.

    Attributes:
        rows: finished rows, [rows, W, C] or [rows, W], of the image's type; they last until the next
            strip is asked for.
        suspects: (tile, a value of its output) where the output has NaN or infinite values, or is
            constant though the input is not. The value is NaN, infinite, or the constant. Where the network
            runs several times for a place, each run is a tile of its own.
    """

    rows: Array
    suspects: list[tuple[int, float]]


class Session(Protocol):
    """Runs tiles. Any number of threads may call :meth:`run` at the same time."""

    def run(self, tiles: Array) -> Array:
        """Run tiles, in batches that the session chooses; the last one is filled up where it must be.

        Args:
            tiles: [N, ...] in the manifest's input layout and dtype, N >= 1.

        Returns:
            [N, ...] in the manifest's output layout and dtype.

        Raises:
            ValueError: tiles of another shape or type.
            ClosedSessionError: it was closed.
            BackendError: the run failed, most likely for want of memory; or a server refused, failed, or gave no answer
                that makes sense.
        """

    def close(self) -> None:
        """Give back what the session holds; it cannot be used afterwards."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


@runtime_checkable
class Described(Protocol):
    """A session that can tell what it runs on."""

    def facts(self) -> dict[str, str]:
        """Versions, provider, device: whatever a figure measured with it depends on."""


@runtime_checkable
class IntoSession(Session, Protocol):
    """A session that writes to memory of the caller's."""

    def run_into(self, tiles: Array, out: Array) -> None:
        """As :meth:`Session.run`, to a contiguous array of what that gives."""


@runtime_checkable
class ImageSession(Session, Protocol):
    """A session that also cuts an image into tiles and blends them, on its device."""

    def strips(self, read: ReadStrip, down: Axis, across: Axis, way: Route, batch: int) -> Generator[Strip, None, None]:
        """See :meth:`echoir.runtime.cuda.session.TensorRTSession.strips`."""


def check_tiles(tiles: Array, manifest: Manifest) -> None:
    """Refuse tiles that are not what a session takes.

    Raises:
        ValueError: none at all, or of another shape or type than the manifest's.
    """
    source, needed = manifest.input, manifest.shape("input", len(tiles))
    if not len(tiles) or tiles.shape != needed or tiles.dtype != source.dtype:
        raise ValueError(f"tiles must be {source.dtype} {needed}, got {tiles.dtype} {tiles.shape}")


def run_in_batches(
    manifest: Manifest, tiles: Array, size: int, run: Callable[[Array, Array], None], out: Array | None = None
) -> Array:
    """Check tiles and run them ``size`` at a time; the last batch is filled up.

    Args:
        manifest: of the session.
        tiles: [N, ...] in the input's layout and type, N >= 1.
        size: of a batch.
        run: runs one batch, [size, ...], and writes to an array of the output's layout and type. Both arrays are
            contiguous, and no copies wherever that can be.
        out: [N, ...] in the output's layout and type, contiguous, to write to and return.

    Raises:
        ValueError: tiles, or an ``out``, of another shape or type.
    """
    manifest = manifest.of_tiles(tiles.shape)
    check_tiles(tiles, manifest)
    needed, dtype = manifest.shape("output", len(tiles)), manifest.output.dtype
    if out is None:
        out = np.empty(needed, dtype)
    elif out.shape != needed or out.dtype != dtype or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous {dtype} {needed}, got {out.dtype} {out.shape}")
    for start in range(0, len(tiles), size):
        batch, made = tiles[start : start + size], out[start : start + size]
        if len(batch) == size:
            run(np.ascontiguousarray(batch), made)
            continue
        filled = np.empty((size, *needed[1:]), dtype)
        run(np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)]), filled)
        made[...] = filled[: len(made)]
    return out


def check_tensor(role: Role, manifest: Manifest, name: str, dtype: str, shape: list[int]) -> None:
    """Refuse a tensor of a model that is not what the manifest says; 0 in a shape stands for any size."""
    spec, hint = getattr(manifest, role), "the manifest does not belong to this model"
    if name != spec.name:
        raise ArtifactError(f"{role}.name", name, spec.name, hint)
    if dtype != spec.dtype:
        raise ArtifactError(f"{role}.dtype", dtype, spec.dtype, hint)
    tile = manifest.tile
    needed = manifest.shape(role, tile.batch or 0) if tile.most is None else spec.shape(tile.batch or 0, 0, 0)
    if shape != list(needed):
        shown = ["any" if size == 0 else size for size in shape]
        wanted = ["any" if size == 0 else size for size in needed]
        raise ArtifactError(f"{role}.shape", shown, wanted, f"{hint}: wrong tile, batch or layout")
