"""An image in strips of tiles on the device: what :mod:`echoir.runtime.restorer` does with numpy, without the host.

A row of the image crosses the bus once each way. Rows go up through pinned memory into a ring that
holds two strips of tiles; tiles are cut from it, run, checked and blended into a ring of sums; finished
rows come down through pinned memory. Uploads, inference, blending and downloads run in streams of their
own, two strips and two batches at a time; events keep a buffer from being written while it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from echoir.runtime.channels import Route
from echoir.runtime.contract import Array, ReadStrip, Strip
from echoir.runtime.cuda.driver import BLOCK, Cuda, Memory, grid
from echoir.runtime.cuda.lane import Lane
from echoir.runtime.tiling import Axis, Weights

KINDS = {np.dtype(np.uint8): 0, np.dtype(np.uint16): 1, np.dtype(np.float32): 2}  # as in tiles.cu
NAN, INFINITE, OUTPUT_VARIES, INPUT_VARIES = 1, 2, 4, 8  # bits of the flags, as in tiles.cu


class DeviceImage:
    """Buffers for images of one width, tile grid and pixel type; and the work on one image at a time.

    Args:
        cuda: the device.
        kernels: those of tiles.cu.
        down, across: the tile grid.
        way: how the image goes through the network.
        rows: a strip of an image, for its shape and type.
    """

    def __init__(self, cuda: Cuda, kernels: dict[str, Any], down: Axis, across: Axis, way: Route, rows: Array) -> None:
        self._cuda, self._kernels = cuda, kernels
        self._down, self._across, self._way = down, across, way
        self._kind, self._dtype = KINDS[rows.dtype], rows.dtype
        self._planes = rows.shape[2] if rows.ndim == 3 else 1
        self._row = rows[0].nbytes
        self._ring = 2 * down.covered
        # Behind the network.
        self._height, self._width = way.factor * down.covered, way.factor * across.size
        self._columns, self._depth = way.factor * across.covered, way.passes * way.made
        made = (self._height, self._width) if way.result == 1 else (self._height, self._width, way.result)
        self._tiles = way.passes * len(across.starts)
        self._memory = memory = Memory(cuda)
        try:
            self._image = memory.take(self._ring * self._row)
            self._sums = memory.take(self._height * self._width * self._depth * 4)
            self._staged = [cuda.pinned(rows.shape, self._dtype) for _ in range(2)]
            self._fetched = [cuda.pinned(made, self._dtype) for _ in range(2)]
            self._finished = [memory.take(fetched.nbytes) for fetched in self._fetched]
            self._flags = [memory.take(2 * self._tiles * 4) for _ in range(2)]
            self._starts = memory.copy(np.asarray(across.starts, np.int32))
            self._weights_across = memory.copy(_stacked(across.weights))
            self._weights_down = memory.copy(_stacked(down.weights))
            self._fetched_flags = [cuda.pinned((self._tiles, 2), np.dtype(np.int32)) for _ in range(2)]
            self._upload, self._blend, self._download = (cuda.stream() for _ in range(3))
            self._uploaded, self._blended, self._downloaded = ([cuda.event() for _ in range(2)] for _ in range(3))
        except BaseException:
            memory.free()
            raise

    def fits(self, down: Axis, across: Axis, way: Route, rows: Array) -> bool:
        """Whether images of this geometry go through these buffers."""
        mine, other = (
            (axes[0].size, axes[1].size, axes[0].starts, axes[1].starts)
            for axes in ((self._down, self._across), (down, across))
        )
        return (mine, self._way, self._dtype) == (other, way, rows.dtype)

    def restore(self, lane: Lane, read: ReadStrip, first: Array) -> Iterator[Strip]:
        """Work through an image; between strips, the context is current in no thread.

        Args:
            lane: runs batches of tiles.
            read: gives a strip of the image by its number, one after the other from 1 on.
            first: strip 0.
        """
        count = len(self._down.starts)
        try:
            for strip in range(count + 1):
                if strip < count:
                    rows = first if strip == 0 else read(strip)
                    with self._cuda.current():
                        self._send(strip, rows)
                        self._process(strip, lane)
                        self._fetch(strip)
                if strip > 0:
                    with self._cuda.current():
                        self._downloaded[(strip - 1) % 2].synchronize()
                    yield self._result(strip - 1)
        except BaseException:  # given up halfway: what runs must end before the buffers serve another image
            with self._cuda.current():
                for stream in (self._upload, lane.compute, self._blend, self._download):
                    stream.synchronize()
            raise

    def free(self) -> None:
        """Give everything back; the context is current."""
        self._memory.free()
        self.__dict__.clear()

    def _send(self, strip: int, rows: Array) -> None:
        """New rows of a strip into the ring; the strip before the last is over, so its slots are free."""
        slot, top, end = strip % 2, self._down.starts[strip], self._down.ends[strip]
        begin = top if strip == 0 else self._down.ends[strip - 1]
        staged = self._staged[slot][: end - begin]
        np.copyto(staged, rows[begin - top :])
        done = begin
        while done < end:
            here = min(end - done, self._ring - done % self._ring)
            target = self._image + done % self._ring * self._row
            part = staged[done - begin : done - begin + here]
            self._cuda.driver.memcpy_htod_async(target, part, self._upload)
            done += here
        self._uploaded[slot].record(self._upload)

    def _process(self, strip: int, lane: Lane) -> None:
        """All tiles of a strip: cut, run, check, blend; then its finished rows."""
        slot, top, rows = strip % 2, self._down.starts[strip], self._down.ends[strip] - self._down.starts[strip]
        driver, compute, blend, starts = self._cuda.driver, lane.compute, self._blend, self._across.starts
        scale, passes = self._way.factor, self._way.passes
        if strip == 0:
            driver.memset_d32_async(self._sums, 0, self._height * self._width * self._depth, blend)
        driver.memset_d32_async(self._flags[slot], 0, 2 * self._tiles, blend)
        compute.wait_for_event(self._uploaded[slot])
        source, sink = lane.given, lane.made
        down = self._weights_down + strip * self._height * 4
        for first in range(0, self._tiles, lane.batch):
            count = min(lane.batch, self._tiles - first)
            tiles_slot = lane.next_slot()
            compute.wait_for_event(tiles_slot.read)  # the tiles before these have been blended
            self._launch(
                "cut", compute, grid(source.width, source.height, lane.batch),
                self._image, self._kind, self._planes, self._across.size, self._ring, top, rows,
                self._starts, first, self._tiles - 1, passes, self._across.covered, tiles_slot.given, *source.fields,
            )  # fmt: skip
            lane.infer(tiles_slot)
            blend.wait_for_event(tiles_slot.written)
            self._launch(
                "check", blend, grid(sink.width, sink.height, count),
                tiles_slot.given, *source.fields, tiles_slot.made, *sink.fields, self._flags[slot] + first * 8,
            )  # fmt: skip
            left, right = (scale * starts[tile // passes] for tile in (first, first + count - 1))
            self._launch(
                "blend", blend, grid(right + self._columns - left, scale * rows), tiles_slot.made, *sink.fields,
                self._starts, first, count, passes, scale, down, self._weights_across,
                self._sums, self._width, self._height, scale * top, scale * rows, self._columns,
            )  # fmt: skip
            tiles_slot.read.record(blend)
        self._launch(
            "finish", blend, grid(self._width, self._rows(strip)),
            self._sums, self._width, self._height, scale * top, self._rows(strip), self._depth,
            self._finished[slot], self._kind, self._way.result,
        )  # fmt: skip
        self._blended[slot].record(blend)

    def _fetch(self, strip: int) -> None:
        """Finished rows and flags on their way to the host."""
        slot, driver = strip % 2, self._cuda.driver
        self._download.wait_for_event(self._blended[slot])
        driver.memcpy_dtoh_async(self._fetched[slot][: self._rows(strip)], self._finished[slot], self._download)
        driver.memcpy_dtoh_async(self._fetched_flags[slot], self._flags[slot], self._download)
        self._downloaded[slot].record(self._download)

    def _result(self, strip: int) -> Strip:
        suspects = []
        for tile, (found, bits) in enumerate(self._fetched_flags[strip % 2]):
            value = float(np.int32(bits).view(np.float32))
            if found & NAN:
                suspects.append((tile, float("nan")))
            elif found & INFINITE:
                suspects.append((tile, float("inf")))
            elif not found & OUTPUT_VARIES and found & INPUT_VARIES:
                suspects.append((tile, value))
        return Strip(self._fetched[strip % 2][: self._rows(strip)], suspects)

    def _rows(self, strip: int) -> int:
        """How many rows behind the network no later strip adds to."""
        starts = self._down.starts
        end = starts[strip + 1] if strip + 1 < len(starts) else self._down.size
        return self._way.factor * (end - starts[strip])

    def _launch(self, name: str, stream: Any, blocks: tuple[int, int, int], *arguments: int) -> None:
        self._kernels[name].prepared_async_call(blocks, BLOCK, stream, *arguments)


def _stacked(weights: list[Weights]) -> Array:
    """Weights of every tile, filled up to the length of the first: the last may hang over the image."""
    stacked = np.zeros((len(weights), len(weights[0])), np.float32)
    for row, one in zip(stacked, weights, strict=True):
        row[: len(one)] = one
    return stacked


class ImageLane(Lane):
    """A lane that keeps the buffers of the image last restored."""

    _image: DeviceImage | None = None

    def image(self, kernels: dict[str, Any], down: Axis, across: Axis, way: Route, rows: Array) -> DeviceImage:
        """Buffers for an image like this: those of the last, if they fit."""
        if self._image is None or not self._image.fits(down, across, way, rows):
            if self._image is not None:
                self._image.free()
                self._image = None
            self._image = DeviceImage(self._cuda, kernels, down, across, way, rows)
        return self._image

    def free(self) -> None:
        """Give everything back; the context is current."""
        if self._image is not None:
            self._image.free()
            self._image = None
        super().free()
