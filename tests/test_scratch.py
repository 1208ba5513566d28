"""Memory that is used again: no tile after the first few allocates its arrays, and threads do not share any."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Io, make_artifact

from echoir.runtime import Restorer
from echoir.runtime.contract import Device, IntoSession
from echoir.runtime.scratch import Scratch, Shelf
from echoir.runtime.sessions import open_session

DEVICES = [
    "cpu",
    pytest.param("openvino", marks=pytest.mark.skipif(find_spec("openvino") is None, reason="echoir[openvino]")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("io", ["float", "uint8"])
@pytest.mark.parametrize("size", [(256, 2300), (200, 2100)])
def test_a_tile_allocates_nothing_in_steady_state(
    device: Device, io: Io, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    artifact = make_artifact(tmp_path, io=io, tile=(256, 256), batch=1)
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    least = 256 * 256 * 3  # bytes of what a tile could allocate: a mask of its values
    seen: list[int] = []
    before = 0

    def between(done: int, _: int) -> None:
        nonlocal before
        if done > 2:
            seen.append(tracemalloc.get_traced_memory()[1] - before)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]

    with Restorer.open(artifact.model_path, device=device, threads=1) as restorer:
        tracemalloc.start()
        try:
            np.testing.assert_array_equal(restorer(picture, on_tiles=between), picture)
        finally:
            tracemalloc.stop()
    assert len(seen) >= 7
    assert max(seen) < least / 2  # numpy's buffers are 64 KB whatever the tile; what hangs over is gathered first


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [None, 2])
def test_a_session_writes_to_memory_of_the_callers(
    device: Device, batch: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    artifact = make_artifact(tmp_path, tile=(16, 24), batch=batch, gain=0.5)
    tiles = np.random.default_rng(0).random((3, 3, 16, 24), np.float32)
    with open_session(artifact, threads=1, device=device) as session:
        assert isinstance(session, IntoSession)
        out = np.zeros_like(tiles)
        session.run_into(tiles, out)
        np.testing.assert_allclose(out, tiles * 0.5, rtol=1e-6)
        for wrong in (out[:2], out.astype(np.float64), out.transpose(0, 1, 3, 2)):
            with pytest.raises(ValueError, match="out must be contiguous float32"):
                session.run_into(tiles, wrong)


def test_several_threads_restore_with_one_restorer(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, tile=(32, 32))
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (70, 90 + i, 3), np.uint8) for i in range(12)]
    with Restorer.open(artifact.model_path, threads=1, batch=3) as restorer, ThreadPoolExecutor(4) as pool:
        for picture, restored in zip(pictures, pool.map(restorer, pictures), strict=True):
            np.testing.assert_array_equal(restored, picture)


def test_scratch_is_made_anew_only_where_it_does_not_fit() -> None:
    scratch = Scratch()
    first = scratch.take("a", (4, 8), np.float32)

    def same(shape: tuple[int, ...], dtype: Any = np.float32) -> bool:
        taken = scratch.take("a", shape, dtype)
        assert (taken.shape, taken.dtype) == (shape, dtype)
        return np.shares_memory(taken, first)

    assert same((4, 8))
    assert same((2, 8))
    assert not np.shares_memory(scratch.take("b", (4, 8), np.float32), first)
    assert not same((5, 8))
    shelf = Shelf()
    with shelf.borrowed() as one, shelf.borrowed() as other:
        assert one is not other
    with shelf.borrowed() as again:
        assert again in (one, other)
