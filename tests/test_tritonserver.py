"""What a real tritonserver does with the repositories written here. `make serving` brings it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_artifact
from PIL import Image
from running import echoir
from tritonserver import PYTHON, Triton, stand_in, tritonserver

from echoir.runtime.artifact import Artifact
from echoir.runtime.errors import BackendError
from echoir.runtime.restorer import Restorer
from echoir.runtime.serving.repository import write_repository
from echoir.runtime.sessions import open_model

pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="no tritonserver: ECHOIR_SERVING_PYTHON names none (make serving)"
)
QUEUE = 32


@pytest.fixture(scope="module")
def halving(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_artifact(tmp_path_factory.mktemp("halving"), "halving", gain=0.5)


@pytest.fixture(scope="module")
def models(halving: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model of an open batch, with a short queue too, and one of a fixed batch."""
    models = tmp_path_factory.mktemp("models")
    fixed = make_artifact(tmp_path_factory.mktemp("fixed"), "fixed", gain=0.5, batch=1)
    stand_in(write_repository(halving, models, name="halving", queue=QUEUE))
    stand_in(write_repository(halving, models, name="short", max_batch=1, queue=1))
    stand_in(write_repository(fixed, models, name="fixed", queue=1))
    return models


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    with tritonserver(models, tmp_path_factory.mktemp("server"), seconds=0.05) as server:
        yield server


@pytest.fixture
def fresh(models: Path, tmp_path: Path) -> Iterator[Triton]:
    """A server to end."""
    (tmp_path / "server").mkdir()
    with tritonserver(models, tmp_path / "server", seconds=0.2) as server:
        yield server


@pytest.fixture(scope="module")
def image() -> np.ndarray[Any, Any]:
    """28 tiles."""
    return np.random.default_rng(7).integers(0, 256, (4 * 56 + 8, 7 * 56 + 8, 3), np.uint8)


def test_tiles_of_three_clients_share_batches(server: Triton, image: np.ndarray[Any, Any], halving: Artifact) -> None:
    heights = (slice(0, 64), slice(56, 120), slice(112, 232))  # 7, 7 and 14 tiles
    with ThreadPoolExecutor(28) as pool, Restorer.open(halving.model_path) as local:
        clients = [Restorer.open(server.url("halving")) for _ in heights]
        before = server.counts("halving")
        tiles = [
            np.ascontiguousarray(
                image[rows][y : y + 64, x * 56 : x * 56 + 64].transpose(2, 0, 1)[None] / np.float32(255)
            )
            for rows in heights
            for y in range(0, image[rows].shape[0] - 8, 56)
            for x in range(7)
        ]
        owners = [0] * 7 + [1] * 7 + [2] * 14
        answers = list(pool.map(lambda i: clients[owners[i]].session.run(tiles[i]), range(28)))
        after = server.counts("halving")
        for tile, answer in zip(tiles, answers, strict=True):
            assert np.array_equal(answer, local.session.run(tile))
        for client in clients:
            client.close()
    print(f"{after[0] - before[0]} tiles in {after[1] - before[1]} executions")
    assert after[0] - before[0] == 28
    assert after[1] - before[1] <= 14


@pytest.mark.parametrize("model", ["halving", "short", "fixed"])
def test_restore_and_stream_give_what_they_give_locally(
    model: str, server: Triton, halving: Artifact, tmp_path: Path
) -> None:
    Image.effect_noise((130, 90), 40).convert("RGB").save(tmp_path / "a.png")
    frames = np.random.default_rng(3).integers(16, 236, 2 * 64 * 48 * 3, np.uint8)
    video = b"YUV4MPEG2 W64 H48 F25:1 C444\n" + b"".join(b"FRAME\n" + part.tobytes() for part in np.split(frames, 2))
    (tmp_path / "in.y4m").write_bytes(video)
    for place in (server.url(model), halving.model_path):
        out = tmp_path / ("remote" if place != halving.model_path else "local")
        assert echoir("restore", tmp_path / "a.png", "-m", place, "-o", out / "a.png").code == 0
        pytest.importorskip("av")
        arguments = ("-m", place, "--encoder", "ffv1")
        assert echoir("stream", tmp_path / "in.y4m", out / "clip.mkv", *arguments).code == 0
    assert (tmp_path / "remote" / "a.png").read_bytes() == (tmp_path / "local" / "a.png").read_bytes()
    assert _frames(tmp_path / "remote" / "clip.mkv") == _frames(tmp_path / "local" / "clip.mkv")


def _frames(path: Path) -> list[bytes]:
    import av

    with av.open(str(path)) as container:
        return [bytes(plane) for frame in container.decode(video=0) for plane in frame.planes]


@pytest.mark.parametrize("model", ["short", "fixed"])
def test_a_full_queue_is_503_and_patience_gets_through(
    model: str, server: Triton, image: np.ndarray[Any, Any], halving: Artifact
) -> None:
    impatient, patient = (Restorer.open(server.url(model) + query) for query in ("?patience=0", "?patience=20"))
    tile = np.zeros((1, 3, 64, 64), np.float32)

    def ask(client: Restorer) -> str:
        try:
            client.session.run(tile)
        except BackendError as error:
            return str(error)
        return "done"

    with ThreadPoolExecutor(8) as pool, impatient, patient:
        refused = list(pool.map(ask, [impatient] * 8))
        assert "done" in refused
        assert all(said == "done" or "too busy" in said for said in refused)
        assert any("too busy" in said for said in refused)
        assert list(pool.map(ask, [patient] * 8)) == ["done"] * 8


def test_what_the_server_refuses_is_told_in_its_own_words(server: Triton) -> None:
    with pytest.raises(BackendError, match=r"404.*'nothing' is not found"):
        open_model(server.url("nothing"))
    with Restorer.open(server.url("halving")) as restorer:
        restorer.session.max_batch = 9  # type: ignore[attr-defined]
        with pytest.raises(BackendError, match=r"400.*batch-size must be <= 8"):
            restorer.session.run(np.zeros((9, 3, 64, 64), np.float32))


def test_a_dead_model_is_ready_for_the_server_and_found_out_by_the_canary(fresh: Triton, tmp_path: Path) -> None:
    with Restorer.open(fresh.url("halving")):
        pass
    for stub in fresh.stubs():
        os.kill(stub, signal.SIGKILL)
    end = time.monotonic() + 5
    while fresh.stubs() and time.monotonic() < end:
        time.sleep(0.05)
    assert fresh.get("models/halving/ready")[0] == 200
    Image.new("RGB", (50, 50), "teal").save(tmp_path / "a.png")
    result = echoir("restore", tmp_path / "a.png", "-m", fresh.url("halving"), "-o", tmp_path / "out")
    assert result.code == 6
    assert "calls the model ready, but a canary tile failed" in result.err


def test_requests_under_way_are_answered_when_the_server_is_told_to_stop(fresh: Triton) -> None:
    tile = np.zeros((1, 3, 64, 64), np.float32)
    address = fresh.url("short") + "?patience=0"
    with Restorer.open(address) as restorer:
        answers: list[np.ndarray[Any, Any]] = []
        thread = threading.Thread(target=lambda: answers.append(restorer.session.run(tile)))
        thread.start()
        time.sleep(0.1)  # an execution takes 0.2 s
        fresh.process.send_signal(signal.SIGTERM)
        thread.join(10)
        assert len(answers) == 1
    assert fresh.process.wait(timeout=20) == 0
    with pytest.raises(BackendError, match="cannot be reached"):
        Restorer.open(address)
