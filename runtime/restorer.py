"""From an image to tiles, through a session, and back to an image."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from copy import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from echoir.runtime import fit
from echoir.runtime.channels import PEAKS, Floats, Route, keeps_pictures, route
from echoir.runtime.contract import Array, Device, ImageSession, IntoSession, ReadStrip, Session
from echoir.runtime.errors import ArtifactError, ImageError
from echoir.runtime.guard import check_output, guard
from echoir.runtime.inputs import Colour, parts
from echoir.runtime.manifest import Manifest
from echoir.runtime.scratch import Scratch, Shelf
from echoir.runtime.sessions import open_models, open_session
from echoir.runtime.strength import Mixture, check_strength
from echoir.runtime.tiling import Axis, reflect, tile_axis

if TYPE_CHECKING:
    from echoir.runtime.streams.images import Frame, ImageStream
    from echoir.runtime.streams.pipeline import Policy

ReadRows = Callable[[int, int], Array]
OnTiles = Callable[[int, int], None]


class Restorer:
    """Restores images of any size with a model of one tile size, or of free sides and so many pixels.

    One restorer may serve several threads: it keeps nothing between calls but its settings and idle memory::

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
        self._shelf, self._others = Shelf(), tuple[Restorer, ...]()
        self.overlap = tile.overlap if overlap is None else overlap
        self.batch = (tile.batch or 1) if batch is None else batch
        network, sides = manifest.network, (tile.height, tile.width)
        most = min(side - phase for side, phase in zip(sides, network.phase, strict=True))
        if not network.overlap <= self.overlap <= most:
            hint = f"tiles are {tile.height} x {tile.width}"
            raise ArtifactError("overlap", self.overlap, f"{network.overlap} to {most}", hint)
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
        say: Callable[[str], None] = lambda _: None,
    ) -> Restorer:
        """Open an artifact: the model file, its ``.json``, or their folder; or a server's ``http://HOST:PORT/MODEL``.

        A folder may hold several artifacts of one network, as ``echoir-export --tile 256 --tile 544x960`` makes them:
        each picture then goes through the one whose tiles waste least.

        Args:
            say: told in a line what ``device="auto"`` came to.

        Raises:
            ArtifactError: the artifact is broken, or does not allow this overlap, batch or strength.
            BackendError: its backend or the device is not here, or the server is not.
        """
        with ExitStack() as stack:
            opened = []
            for model in open_models(path):
                session = stack.enter_context(open_session(model, threads=threads, device=device, say=say))
                opened.append(cls(session, model.manifest, overlap=overlap, batch=batch))
            first = opened[0]
            check_strength(strength, first.manifest.network)
            first.strength, first._others = strength, tuple(opened[1:])
            stack.pop_all()
        return first

    @property
    def models(self) -> list[dict[str, str | int]]:
        """Of each model its SHA-256, and the overlap and margin of its tiles: what pixels depend on."""
        return [
            {"sha256": one.manifest.model.sha256, "overlap": one.overlap, "margin": one.manifest.tile.margin}
            for one in (self, *self._others)
        ]

    def __call__(
        self, image: Array, *, colour: Colour = "RGB", on_tiles: OnTiles | None = None, out: Array | None = None
    ) -> Array:
        """Restore an image, or several of one size.

        Args:
            image: [H, W, 3] in ``colour``, [H, W] or [H, W, 1] gray, [H, W, 4] with alpha, or N of them [N, H, W, C];
                uint8, uint16, or float32 or float64 nominally in [0, 1]; any H, W >= 1. Gray goes through a network
                for RGB as three equal channels, and comes back as their mean; RGB goes through one for gray plane by
                plane; alpha comes back as it is, or enlarged. A network for RGGB takes a mosaic, [H, W] with red
                first, or its four planes, [H, W, 4]; one for pairs takes [H, W, 6].
            colour: the order of the colours, ``"RGB"``, or ``"BGR"`` as OpenCV has them.
            on_tiles: told (tiles done, tiles in all) after every batch.
            out: an array of the result's shape and type that shares no memory with ``image``, to write to and return.

        Returns:
            The same shape, but for the network's scale and its output's channels; the same type and order. Integers
            are rounded and clipped; floats are not clipped, and float64 is computed as float32.

        Raises:
            ImageError: what cannot be restored, or an ``out`` that cannot take it; the message says what to give.
            RejectedOutputError: the session gave NaN, infinite or constant pixels.
            ClosedSessionError: the session was closed.
        """
        restored, images = parts(image, out, colour, self.manifest.network)
        tiles = 0
        for part in images:

            def told(done: int, total: int, before: int = tiles) -> None:
                if on_tiles is not None:
                    on_tiles(before + done, total * len(images))

            done = 0
            for rows in self.strips(part.rows, part.height, part.width, channels=part.channels, on_tiles=told):
                part.out[done : done + len(rows)] = rows
                done += len(rows)
            tiles += self.tiles(part.height, part.width, part.channels)
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
        from echoir.runtime.streams.images import ImageStream

        if deadline is not None and policy == "pass" and not keeps_pictures(network := self.manifest.network):
            raise ValueError(f"{network.name} changes a picture's size or channels: no frame can pass unrestored")
        return ImageStream(partial(self, colour=colour), frames, deadline, policy, depth)

    def fitted(self, height: int, width: int) -> Restorer:
        """The restorer with the tile that fits a network's input of that size; this one where the tile is fixed."""
        if self._others:
            best = min((self, *self._others), key=lambda one: one._cost(height, width))
            if best is not self:
                return best
        manifest = fit.fitted(self.manifest, height, width, self.overlap)
        if manifest is self.manifest:
            return self
        restorer = copy(self)
        restorer.manifest = replace(manifest, tile=replace(manifest.tile, most=None))
        return restorer

    def _cost(self, height: int, width: int) -> tuple[float, int]:
        """Pixels through the network for each of the picture's, then tiles."""
        count, _, cost = fit.waste(self.manifest, height, width, self.overlap)
        return cost, count

    def tiles(self, height: int, width: int, channels: int = 3) -> int:
        """How many tiles an image of this size takes; ``channels`` as for :meth:`strips`."""
        mosaic = self.route(channels).mosaic
        height, width = height // mosaic, width // mosaic
        fitted = self.fitted(height, width)
        return len(fitted._axis(0, height).starts) * len(fitted._axis(1, width).starts)

    def route(self, channels: int) -> Route:
        """How images with so many channels go through the network, and what they become.

        Raises:
            ImageError: they cannot; the message says what the network takes.
        """
        return route(self.manifest.network, channels)

    def strips(
        self,
        read_rows: ReadRows,
        height: int,
        width: int,
        *,
        channels: int = 3,
        on_tiles: OnTiles | None = None,
    ) -> Iterator[Array]:
        """Restore an image of any height in the memory of one strip of tiles.

        Args:
            read_rows: ``read_rows(y0, y1)`` gives rows y0 to y1 - 1, [y1 - y0, W, channels] or [y1 - y0, W],
                of a type that :meth:`__call__` takes. Called from top to bottom; neighbouring calls
                share the overlap.
            height, width: the image's size in pixels.
            channels: of the image; 1 is [H, W].
            on_tiles: told (tiles done, tiles in all) after every batch.

        Yields:
            Finished rows from top to bottom, of the image's type; together they are the image, of the size and
            the channels that :meth:`route` says.

        Raises:
            ImageError: a shape or type that cannot be restored.
            RejectedOutputError: the session gave NaN, infinite or constant pixels.
        """
        if height < 1 or width < 1:
            raise ImageError(f"an image has at least one pixel, got {height} x {width}")
        if self.strength != 1:
            whole, mixture = copy(self), Mixture(read_rows, self.strength)
            whole.strength = 1.0
            yield from map(mixture, whole.strips(mixture.read, height, width, channels=channels, on_tiles=on_tiles))
            return
        way = self.route(channels)
        way.size(height, width)  # refuses what does not divide
        fitted = self.fitted(height // way.mosaic, width // way.mosaic)
        if fitted is not self:
            yield from fitted.strips(read_rows, height, width, channels=channels, on_tiles=on_tiles)
            return
        down, across = self._axis(0, height // way.mosaic), self._axis(1, width // way.mosaic)

        def read(strip: int) -> Array:
            y0, y1 = way.mosaic * down.starts[strip], way.mosaic * down.ends[strip]
            rows = read_rows(y0, y1)
            self._check(rows, y1 - y0, width, channels)
            return way.packed(rows)

        work = self._strips_on_device if isinstance(self.session, ImageSession) else self._strips_here
        with self._shelf.borrowed() as scratch:
            yield from work(read, down, across, way, on_tiles, scratch)

    def _strips_here(
        self, read: ReadStrip, down: Axis, across: Axis, way: Route, on_tiles: OnTiles | None, scratch: Scratch
    ) -> Iterator[Array]:
        """Cut and blended with numpy; from the second tile on it allocates nothing for a tile."""
        scale, made = way.factor, way.made
        # Sums of weighted tiles, for each pass; row 0 is the first row not yet given out. Pixels and channels share
        # an axis, [passes, rows, W * C], since numpy is slow where the innermost axis is as short as three.
        sums = np.zeros((way.passes, scale * down.covered, scale * across.size * made), np.float32)
        weights_across = [np.repeat(weights, made) for weights in across.weights]
        total = len(down.starts) * len(across.starts)
        for i, (y, weights) in enumerate(zip(down.starts, down.weights, strict=True)):
            rows = read(i)
            for tiles, given in self._cut(rows, across, way, down.tile, scratch):
                places = [(way.mosaic * y, way.mosaic * across.starts[tile // way.passes]) for tile in tiles]
                restored = self._run(given, PEAKS[rows.dtype], places, scratch)
                for tile, output in zip(tiles, restored, strict=True):
                    x = tile // way.passes
                    part = output.reshape(len(output), -1)[: len(weights), : len(weights_across[x])]
                    part *= weights[:, None]
                    part *= weights_across[x]
                    left = scale * across.starts[x] * made
                    sums[tile % way.passes, : len(part), left : left + part.shape[1]] += part
                if on_tiles is not None:
                    on_tiles(i * len(across.starts) + tiles.stop // way.passes, total)
            finished = scale * ((down.starts[i + 1] if i + 1 < len(down.starts) else down.size) - y)
            done = sums[:, :finished].reshape(way.passes, finished, scale * across.size, made)
            yield from way.finished(done, rows.dtype)
            # What later tiles still add to moves up; the rest starts from nothing.
            sums[:, :-finished] = sums[:, finished:]
            sums[:, -finished:] = 0

    def _strips_on_device(
        self, read: ReadStrip, down: Axis, across: Axis, way: Route, on_tiles: OnTiles | None, scratch: Scratch
    ) -> Iterator[Array]:
        """The same where the session cuts and blends by itself."""
        assert isinstance(self.session, ImageSession)
        held: dict[int, Array] = {}  # strips under way, for a closer look at a suspect tile

        def hold(strip: int) -> Array:
            held[strip] = read(strip)
            return held[strip]

        total = len(down.starts) * len(across.starts)
        with closing(self.session.strips(hold, down, across, way, self.batch)) as strips:
            for i, strip in enumerate(strips):
                rows = held.pop(i)
                for x, value in strip.suspects:
                    cut = self._cut(rows, across, way, down.tile, scratch)
                    tile = next(given[x - tiles[0]] for tiles, given in cut if x in tiles)
                    output = np.full((1, 1, 1), value, self.manifest.output.dtype)
                    place = (way.mosaic * down.starts[i], way.mosaic * across.starts[x // way.passes])
                    guard(tile, output, PEAKS[rows.dtype], place, self.manifest)
                if on_tiles is not None:
                    on_tiles((i + 1) * len(across.starts), total)
                yield strip.rows

    def close(self) -> None:
        """Close the session, or sessions."""
        for one in (self, *self._others):
            one.session.close()

    def __enter__(self) -> Restorer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _axis(self, axis: int, size: int) -> Axis:
        network, tile = self.manifest.network, self.manifest.tile
        side = (tile.height, tile.width)[axis]
        return tile_axis(size, side, self.overlap, network.phase[axis], network.scale, tile.margin)

    def _check(self, rows: Array, height: int, width: int, channels: int) -> None:
        needed = (height, width) if channels == 1 else (height, width, channels)
        if rows.shape != needed:
            raise ImageError(f"{height} rows of {width} pixels of this image are {needed}, got {rows.shape}")
        if rows.dtype not in PEAKS:
            raise ImageError(f"pixels must be uint8, uint16 or float32, got {rows.dtype}")
        if self.manifest.input.dtype == "uint8" and rows.dtype != np.uint8:
            raise ImageError(
                f"this model takes 8-bit pixels and the image has {rows.dtype}, whose depth would be lost; "
                "use a model exported with --io float, or convert the image to 8 bits first"
            )
        if rows.dtype == np.float32 and not np.isfinite(rows).all():
            raise ImageError("the image holds NaN or infinite pixels")

    def _cut(
        self, rows: Array, across: Axis, way: Route, tile_height: int, scratch: Scratch
    ) -> Iterator[tuple[range, Array]]:
        """Batches of one strip's tiles, [N, tile height, tile width, C] in the image's type, with their numbers.

        The passes of a tile follow each other. Where a tile hangs over the image it is extended by its own pixels.
        Tiles last until the next are asked for.
        """
        height = len(rows)
        below = reflect(height, tile_height)[height:]
        count = len(across.starts) * way.passes
        for first in range(0, count, self.batch):
            numbers = range(first, min(first + self.batch, count))
            tiles = scratch.take("tiles", (len(numbers), tile_height, across.tile, way.given), rows.dtype)
            for tile, number in zip(tiles, numbers, strict=True):
                x = number // way.passes
                part = rows[:, across.starts[x] : across.ends[x]]
                part = part[..., None] if part.ndim == 2 else part
                width = part.shape[1]
                tile[:height, :width] = part if way.passes == 1 else part[..., number % way.passes, None]
                tile[:height, width:] = tile[:height, reflect(width, across.tile)[width:]]
                tile[height:] = tile[below]
            yield numbers, tiles

    def _run(self, tiles: Array, peak: int, places: list[tuple[int, int]], scratch: Scratch) -> Floats:
        """Tiles through the session: [N, h, w, C] of any type -> float32, 1 being white; it lasts until the next."""
        source, sink = self.manifest.input, self.manifest.output
        given = tiles if source.layout == "NHWC" else tiles.transpose(0, 3, 1, 2)
        if source.dtype == "uint8":
            given = np.ascontiguousarray(given)
        else:  # a division, since x * (1 / 255) is not x / 255
            floats = scratch.take("given", given.shape, np.float32)
            given = np.divide(given, np.float32(peak), out=floats, casting="unsafe")
        if isinstance(self.session, IntoSession):
            raw = scratch.take("made", self.manifest.shape("output", len(tiles)), self.manifest.output.dtype)
            self.session.run_into(given, raw)
        else:
            raw = self.session.run(given)
            check_output(raw, len(tiles), self.manifest)
        restored = raw if sink.layout == "NHWC" else raw.transpose(0, 2, 3, 1)
        for tile, output, place in zip(tiles, restored, places, strict=True):
            guard(tile, output, peak, place, self.manifest)
        white = np.float32(sink.range[1])
        # A copy in any case: the sums weight it in place.
        return np.divide(restored, white, out=scratch.take("restored", restored.shape, np.float32))
