"""From an image to tiles, through a session, and back to an image."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from copy import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from echoir.runtime import fit
from echoir.runtime.channels import PEAKS, Floats, finish
from echoir.runtime.contract import Array, Device, ImageSession, Session
from echoir.runtime.errors import ArtifactError, ImageError
from echoir.runtime.guard import check_output, guard
from echoir.runtime.inputs import Colour, parts
from echoir.runtime.manifest import Manifest
from echoir.runtime.sessions import open_model, open_session
from echoir.runtime.strength import Mixture, check_strength
from echoir.runtime.tiling import Axis, reflect, tile_axis

if TYPE_CHECKING:
    from echoir.runtime.streams.pipeline import Frame, ImageStream, Policy

ReadRows = Callable[[int, int], Array]
OnTiles = Callable[[int, int], None]


class Restorer:
    """Restores images of any size with a model of one tile size, or of free sides and so many pixels.

    One restorer may serve several threads: it keeps nothing between calls but its settings::

        with Restorer.open("denoise-fp16.onnx") as restorer:
            clean = restorer(noisy)

    Args:
        session: runs the tiles.
        manifest: says what the session takes and gives.
        overlap: pixels that neighbouring tiles share at least; None takes the manifest's.
        batch: tiles per call of the session; None takes the manifest's, or 1 where any is allowed.
        strength: how much of the network's change is applied, from 0 (the image as it came) to 1; linear between.

    Raises:
        ArtifactError: an overlap or a batch the tile does not allow, or a strength below 1 where the output has
            another size or other planes than the input.
    """

    def __init__(
        self,
        session: Session,
        manifest: Manifest,
        *,
        overlap: int | None = None,
        batch: int | None = None,
        strength: float = 1.0,
    ) -> None:
        check_strength(strength, manifest.network)
        self.strength = strength
        tile = manifest.tile
        self.session, self.manifest = session, manifest
        self.overlap = tile.overlap if overlap is None else overlap
        self.batch = (tile.batch or 1) if batch is None else batch
        limit = min(tile.height, tile.width)
        if not 0 <= self.overlap < limit:
            raise ArtifactError("overlap", self.overlap, f"0 to {limit - 1}", f"tiles are {tile.height} x {tile.width}")
        if self.batch < 1:
            raise ArtifactError("batch", self.batch, "a whole number from 1 up")

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        overlap: int | None = None,
        batch: int | None = None,
        threads: int | None = None,
        device: Device = "cpu",
        strength: float = 1.0,
    ) -> Restorer:
        """Open an artifact: the model file, its ``.json``, or their folder; or a server's ``http://HOST:PORT/MODEL``.

        Raises:
            ArtifactError: the artifact is broken, or does not allow this overlap, batch or strength.
            BackendError: its backend or the device is not here, or the server is not.
        """
        model = open_model(path)
        session = open_session(model, threads=threads, device=device)
        return cls(session, model.manifest, overlap=overlap, batch=batch, strength=strength)

    def __call__(
        self, image: Array, *, colour: Colour = "RGB", on_tiles: OnTiles | None = None, out: Array | None = None
    ) -> Array:
        """Restore an image, or several of one size.

        Args:
            image: [H, W, 3] in ``colour``, [H, W] or [H, W, 1] gray, [H, W, 4] with alpha, or N of them [N, H, W, C];
                uint8, uint16, or float32 or float64 nominally in [0, 1]; any H, W >= 1. Gray goes through the network
                as three equal channels, and comes back as their mean; alpha comes back as it is.
            colour: the order of the colours, ``"RGB"``, or ``"BGR"`` as OpenCV has them.
            on_tiles: told (tiles done, tiles in all) after every batch.
            out: an array of the same shape and type that shares no memory with ``image``, to write to and return.

        Returns:
            The same shape, type and order. Integers are rounded and clipped; floats are not clipped, and float64 is
            computed as float32.

        Raises:
            ImageError: what cannot be restored, or an ``out`` that cannot take it; the message says what to give.
            RejectedOutputError: the session gave NaN, infinite or constant pixels.
            ClosedSessionError: the session was closed.
        """
        restored, images = parts(image, out, colour)
        tiles = 0
        for part in images:

            def told(done: int, total: int, before: int = tiles) -> None:
                if on_tiles is not None:
                    on_tiles(before + done, total * len(images))

            done = 0
            for rows in self.strips(part.rows, part.height, part.width, on_tiles=told):
                part.out[done : done + len(rows)] = rows
                done += len(rows)
            tiles += self.tiles(part.height, part.width)
        return restored

    def stream(
        self,
        frames: Iterable[Array | tuple[Array, float] | Frame],
        *,
        colour: Colour = "RGB",
        deadline: float | None = None,
        policy: Policy = "pass",
        depth: int | None = None,
    ) -> ImageStream:
        """Restore frames as they come, in order, on a thread beside those that capture and use them::

            for frame in restorer.stream(frames(), deadline=0.033):
                show(frame.image, frame.time, frame.restored)

        Args:
            frames: images as :meth:`__call__` takes, (image, time), or :class:`~echoir.runtime.Frame` with a time or
                other data that is carried along; iterated on a thread of its own, and copied, so that a capture may
                fill one array again and again.
            colour: as of :meth:`__call__`.
            deadline: seconds from coming in to going out; None restores every frame however long it takes.
            policy: what becomes of a frame that is late: ``"pass"`` (it goes out as it came), ``"drop"``, or
                ``"slow"`` (only the newest is restored, at the rate that the model reaches).
            depth: frames that may wait for the model; 4, or 64 with a deadline.

        Returns:
            An iterable of :class:`~echoir.runtime.Frame`, with ``counters`` and ``stop()``. A frame's
            ``image`` is the caller's until the next frame is taken: copy what is kept for longer.

        Raises:
            ImageError: while iterating, a frame that cannot be restored.
            RejectedOutputError: while iterating without a deadline, the session gave unusable pixels; with
                one the frame is counted as rejected, and is late.
        """
        from echoir.runtime.streams.pipeline import ImageStream

        return ImageStream(partial(self, colour=colour), frames, deadline, policy, depth)

    def fitted(self, height: int, width: int) -> Restorer:
        """This restorer with the tile that fits an image of that size; the same where the model's tile is fixed."""
        manifest = fit.fitted(self.manifest, height, width, self.overlap)
        if manifest is self.manifest:
            return self
        restorer = copy(self)
        restorer.manifest = replace(manifest, tile=replace(manifest.tile, most=None))
        return restorer

    def tiles(self, height: int, width: int) -> int:
        """How many tiles an image of this size takes."""
        fitted = self.fitted(height, width)
        return len(fitted._axis(0, height).starts) * len(fitted._axis(1, width).starts)

    def strips(
        self, read_rows: ReadRows, height: int, width: int, *, on_tiles: OnTiles | None = None
    ) -> Iterator[Array]:
        """Restore an image of any height in the memory of one strip of tiles.

        Args:
            read_rows: ``read_rows(y0, y1)`` gives rows y0 to y1 - 1, [y1 - y0, W, 3] or [y1 - y0, W],
                of a type that :meth:`__call__` takes. Called from top to bottom; neighbouring calls
                share the overlap.
            height, width: the image's size in pixels.
            on_tiles: told (tiles done, tiles in all) after every batch.

        Yields:
            Finished rows from top to bottom, of the image's type; together they are the image.

        Raises:
            ImageError: a shape or type that cannot be restored.
            RejectedOutputError: the session gave NaN, infinite or constant pixels.
        """
        if height < 1 or width < 1:
            raise ImageError(f"an image has at least one pixel, got {height} x {width}")
        if self.strength != 1:
            whole, mixture = copy(self), Mixture(read_rows, self.strength)
            whole.strength = 1.0
            yield from map(mixture, whole.strips(mixture.read, height, width, on_tiles=on_tiles))
            return
        fitted = self.fitted(height, width)
        if fitted is not self:
            yield from fitted.strips(read_rows, height, width, on_tiles=on_tiles)
            return
        down, across = self._axis(0, height), self._axis(1, width)
        if isinstance(self.session, ImageSession):
            yield from self._strips_on_device(self.session, read_rows, down, across, width, on_tiles)
            return
        # Sums of weighted tiles; row 0 is the first row not yet given out. Pixels and channels share an
        # axis, [rows, W * 3], since numpy is slow where the innermost axis is as short as three.
        sums = np.zeros((down.covered, width * 3), np.float32)
        weights_across = [np.repeat(weights, 3) for weights in across.weights]
        total, done = len(down.starts) * len(across.starts), 0
        for i, (y, weights) in enumerate(zip(down.starts, down.weights, strict=True)):
            rows = read_rows(y, y + down.covered)
            self._check(rows, down.covered, width)
            for xs, tiles in self._cut(rows, down, across):
                restored = self._run(tiles, PEAKS[rows.dtype], [(y, across.starts[x]) for x in xs])
                for x, tile in zip(xs, restored, strict=True):
                    part = tile.reshape(len(tile), -1)[: down.covered, : across.covered * 3]
                    part *= weights[:, None]
                    part *= weights_across[x]
                    left = across.starts[x] * 3
                    sums[:, left : left + across.covered * 3] += part
                done += len(xs)
                if on_tiles is not None:
                    on_tiles(done, total)
            finished = (down.starts[i + 1] if i + 1 < len(down.starts) else height) - y
            yield from finish(sums[:finished].reshape(finished, width, 3), rows)
            # What later tiles still add to moves up; the rest starts from nothing.
            sums[:-finished] = sums[finished:]
            sums[-finished:] = 0

    def _strips_on_device(
        self,
        session: ImageSession,
        read_rows: ReadRows,
        down: Axis,
        across: Axis,
        width: int,
        on_tiles: OnTiles | None,
    ) -> Iterator[Array]:
        """The same where the session cuts and blends by itself."""
        held: dict[int, Array] = {}  # strips under way, for a closer look at a suspect tile

        def read(strip: int) -> Array:
            y = down.starts[strip]
            held[strip] = read_rows(y, y + down.covered)
            self._check(held[strip], down.covered, width)
            return held[strip]

        total = len(down.starts) * len(across.starts)
        with closing(session.strips(read, down, across, self.batch)) as strips:
            for i, strip in enumerate(strips):
                rows = held.pop(i)
                for x, value in strip.suspects:
                    tile = next(tiles[x - xs[0]] for xs, tiles in self._cut(rows, down, across) if x in xs)
                    output = np.full(tile.shape, value, self.manifest.output.dtype)
                    place = (down.starts[i], across.starts[x])
                    guard(tile, output, PEAKS[rows.dtype], place, self.manifest)
                if on_tiles is not None:
                    on_tiles((i + 1) * len(across.starts), total)
                yield strip.rows

    def close(self) -> None:
        """Close the session."""
        self.session.close()

    def __enter__(self) -> Restorer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _axis(self, axis: int, size: int) -> Axis:
        tile = (self.manifest.tile.height, self.manifest.tile.width)[axis]
        return tile_axis(size, tile, self.overlap)

    def _check(self, rows: Array, height: int, width: int) -> None:
        if rows.shape not in ((height, width, 3), (height, width)):
            raise ImageError(f"an image is [H, W, 3] or [H, W], got {rows.shape} for {height} rows of {width} pixels")
        if rows.dtype not in PEAKS:
            raise ImageError(f"pixels must be uint8, uint16 or float32, got {rows.dtype}")
        if self.manifest.input.dtype == "uint8" and rows.dtype != np.uint8:
            raise ImageError(
                f"this model takes 8-bit pixels and the image has {rows.dtype}, whose depth would be lost; "
                "use a model exported with --io float, or convert the image to 8 bits first"
            )
        if rows.dtype == np.float32 and not np.isfinite(rows).all():
            raise ImageError("the image holds NaN or infinite pixels")

    def _cut(self, rows: Array, down: Axis, across: Axis) -> Iterator[tuple[range, Array]]:
        """Batches of one strip's tiles, [N, tile height, tile width, 3] in the image's type."""
        height, width = down.covered, across.covered
        below, right = reflect(height, down.tile)[height:], reflect(width, across.tile)[width:]
        for first in range(0, len(across.starts), self.batch):
            xs = range(first, min(first + self.batch, len(across.starts)))
            tiles = np.empty((len(xs), down.tile, across.tile, 3), rows.dtype)
            for tile, x in zip(tiles, xs, strict=True):
                part = rows[:, across.starts[x] : across.starts[x] + width]
                tile[:height, :width] = part if part.ndim == 3 else part[..., None]
                tile[:height, width:] = tile[:height, right]
                tile[height:] = tile[below]
            yield xs, tiles

    def _run(self, tiles: Array, peak: int, places: list[tuple[int, int]]) -> Floats:
        """Tiles through the session: [N, h, w, 3] of any type -> float32, 1 being white."""
        source, sink = self.manifest.input, self.manifest.output
        given = tiles if source.layout == "NHWC" else tiles.transpose(0, 3, 1, 2)
        if source.dtype == "uint8":
            given = np.ascontiguousarray(given)
        else:  # a division, since x * (1 / 255) is not x / 255
            given = np.divide(given, np.float32(peak), dtype=np.float32, order="C")
        raw = self.session.run(given)
        check_output(raw, sink, len(tiles), self.manifest)
        restored = raw if sink.layout == "NHWC" else raw.transpose(0, 2, 3, 1)
        for tile, output, place in zip(tiles, restored, places, strict=True):
            guard(tile, output, peak, place, self.manifest)
        white = np.float32(sink.range[1])
        # A copy in any case: the sums weight it in place.
        return np.divide(restored, white, dtype=np.float32, order="C")
