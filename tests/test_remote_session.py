"""Sessions on a server: the same pixels as locally, and what is said of every bad answer."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Io, make_artifact
from PIL import Image
from running import echoir
from v2_server import Handler, Misbehave, Server, serving

from echoir.runtime.artifact import Artifact
from echoir.runtime.errors import ArtifactError, BackendError, ClosedSessionError
from echoir.runtime.restorer import Restorer
from echoir.runtime.serving.repository import write_repository
from echoir.runtime.sessions import open_model, open_session


@pytest.fixture(scope="module")
def halving(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Halves every pixel, any batch."""
    return make_artifact(tmp_path_factory.mktemp("halving"), "halving", gain=0.5)


@pytest.fixture(scope="module")
def repository(halving: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(halving, tmp_path_factory.mktemp("models"), name="halving")


@pytest.fixture
def server(halving: Artifact, repository: Path) -> Iterator[Server]:
    with serving(halving, repository) as server:
        yield server


@pytest.fixture
def image(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    return rng.integers(0, 256, (150, 130, 3), np.uint8)


@pytest.mark.parametrize("io", ["float", "uint8"])
@pytest.mark.parametrize("fixed", [None, 1, 3])
@pytest.mark.parametrize("batch", [None, 2, 20])
def test_a_server_restores_bit_for_bit_as_the_artifact_does(
    io: Io, fixed: int | None, batch: int | None, tmp_path: Path, image: np.ndarray[Any, Any]
) -> None:
    artifact = make_artifact(tmp_path, io=io, batch=fixed, gain=0.7)
    folder = write_repository(artifact, tmp_path / "models", name="test", max_batch=4)
    with serving(artifact, folder) as server:
        with Restorer.open(server.url, batch=batch) as remote, Restorer.open(artifact.model_path) as local:
            assert np.array_equal(remote(image), local(image))
        assert max(server.batches) <= (fixed or 4)


@pytest.mark.parametrize("io", ["float", "uint8"])
@pytest.mark.parametrize("fixed", [None, 1])
def test_a_served_model_of_free_sides_takes_the_tile_that_fits(io: Io, fixed: int | None, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, io=io, batch=fixed, gain=0.7, most=64 * 96)
    folder = write_repository(artifact, tmp_path / "models", name="free", max_batch=4)
    rng = np.random.default_rng(0)
    with serving(artifact, folder) as server:
        sides = [list(map(int, one["dims"])) for one in (*server.config["input"], *server.config["output"])]
        assert all(dims.count(-1) == 2 for dims in sides)
        (warm, *_) = server.config["model_warmup"]
        assert "64" in warm["inputs"]["image"]["dims"]
        with Restorer.open(server.url) as remote, Restorer.open(artifact.model_path) as local:
            for size in ((60, 90), (8, 8), (200, 70)):
                image = rng.integers(0, 256, (*size, 3), np.uint8)
                assert np.array_equal(remote(image), local(image))
            with pytest.raises(ValueError, match="tiles must be"):
                remote.session.run(np.zeros((1, 3, 64, 104), np.float32))


def test_threads_share_a_session_and_connections_are_kept(server: Server, image: np.ndarray[Any, Any]) -> None:
    with Restorer.open(server.url) as restorer, ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(restorer, [image] * 6)
        assert all(np.array_equal(first, other) for other in others)
    assert server.connections <= 4  # one that described the model, one for each thread
    with pytest.raises(ClosedSessionError):
        restorer.session.run(np.zeros((1, 3, 64, 64), np.float32))


def test_restore_gives_the_files_that_it_gives_locally(server: Server, halving: Artifact, tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, size in {"a.png": 70, "deep/b.tif": 90}.items():
        Image.effect_noise((size, 80), 40).convert("RGB").save(tmp_path / "in" / name)
    assert echoir("restore", tmp_path / "in", "-m", server.url, "-o", tmp_path / "remote").code == 0
    assert echoir("restore", tmp_path / "in", "-m", halving.model_path, "-o", tmp_path / "local").code == 0
    for name in ("a.png", "deep/b.tif"):
        assert (tmp_path / "remote" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


def test_bench_and_inspect_work_against_a_server(server: Server, halving: Artifact) -> None:
    result = echoir("bench", "-m", server.url, "--iterations", 3, "--warmup", 1, "--against", halving.model_path)
    assert result.code == 0
    assert "halving takes" in result.out
    assert echoir("inspect", server.url, "--json").out == echoir("inspect", halving.model_path, "--json").out


def closed(handler: Handler, asked: dict[str, Any], restored: np.ndarray[Any, Any]) -> bool:
    handler.close_connection = True
    return True


def reset(handler: Handler, asked: dict[str, Any], restored: np.ndarray[Any, Any]) -> bool:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for file in (handler.rfile, handler.wfile, handler.connection):  # it closes with the last of them
        file.close()
    return True


def cut(handler: Handler, asked: dict[str, Any], restored: np.ndarray[Any, Any]) -> bool:
    header, data = handler.message(asked, restored)
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(header) + len(data)))
    handler.send_header("Inference-Header-Content-Length", str(len(header)))
    handler.end_headers()
    handler.wfile.write(header + data[: len(data) // 2])
    handler.close_connection = True
    return True


def cut_chunks(handler: Handler, asked: dict[str, Any], restored: np.ndarray[Any, Any]) -> bool:
    header, data = handler.message(asked, restored)
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.send_header("Inference-Header-Content-Length", str(len(header)))
    handler.end_headers()
    handler.wfile.write(b"%x\r\n" % (len(header) + len(data)) + header)
    handler.close_connection = True
    return True


def slow(handler: Handler, asked: dict[str, Any], restored: np.ndarray[Any, Any]) -> bool:
    time.sleep(1.5)
    return False


def dripping(handler: Handler, asked: dict[str, Any], restored: np.ndarray[Any, Any]) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(30):
        handler.wfile.write(b" ")
        time.sleep(0.05)
    return True


def says(status: int, body: bytes, **headers: object) -> Misbehave:
    def misbehave(handler: Handler, asked: dict[str, Any], restored: np.ndarray[Any, Any]) -> bool:
        handler.say(status, body, **headers)
        return True

    return misbehave


def answers(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], **changes: object) -> Misbehave:
    def misbehave(handler: Handler, asked: dict[str, Any], restored: np.ndarray[Any, Any]) -> bool:
        handler.answer(asked, change(restored), **changes)
        return True

    return misbehave


BAD = {
    "closed": (closed, "closed the connection without an answer"),
    "reset": (reset, "cut or is not HTTP|closed the connection"),
    "cut": (cut, r"cut after \d+ of \d+ bytes"),
    "cut between chunks": (cut_chunks, "cut or is not HTTP"),
    "slow": (slow, "no whole answer within 0.5 s"),
    "dripping": (dripping, "no whole answer within 0.5 s"),
    "500": (says(500, b'{"error":"the stub is gone"}'), "answered 500: the stub is gone"),
    "400": (says(400, b'{"error":"unexpected shape"}'), "answered 400: unexpected shape"),
    "502 of a proxy": (says(502, b"<html>bad gateway"), "answered 502: <html>bad gateway"),
    "503 for ever": (says(503, b""), "too busy, or not ready"),
    "no tensor": (says(200, b"{}"), "no binary tensor"),
    "not JSON": (says(200, b"hello", Inference_Header_Content_Length=5), "no JSON object but b'hello'"),
    "JSON longer than the answer": (
        says(200, b"{}", Inference_Header_Content_Length=9),
        "says that 9 of them are JSON",
    ),
    "no outputs": (says(200, b"{}", Inference_Header_Content_Length=2), "should hold one output, restored"),
    "an empty tensor": (answers(lambda tiles: tiles[:0]), r"shape is \[0, 3, 64, 64\], needed \[1, 3, 64, 64\]"),
    "the size of another tile": (answers(lambda tiles: tiles[..., :32]), "shape is"),
    "fewer pixels than said": (answers(lambda tiles: tiles[..., :32], shape=[1, 3, 64, 64]), "24576 bytes of pixels"),
    "many more": (
        answers(lambda tiles: np.repeat(tiles, 99, 0), shape=[1, 3, 64, 64]),
        "bytes of pixels, needed 49152",
    ),
    "another type": (answers(lambda tiles: tiles.astype(np.uint8)), "datatype is UINT8, needed FP32"),
    "another tensor": (answers(lambda tiles: tiles, name="logits"), "name is logits, needed restored"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_answer_is_named_in_time_and_no_file_appears(fault: str, server: Server, tmp_path: Path) -> None:
    server.misbehave, message = BAD[fault]
    Image.new("RGB", (50, 50), "teal").save(tmp_path / "a.png")
    address = f"{server.url}?timeout=0.5&patience=0.3"
    began = time.monotonic()
    result = echoir("restore", tmp_path / "a.png", "-m", address, "-o", tmp_path / "out" / "a.png")
    assert time.monotonic() - began < 1.4
    assert result.code == 6
    assert re.search(message, result.err), result.err
    assert "Traceback" not in result.err
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("fault", ["cut", "500", "an empty tensor"])
def test_a_stream_ends_with_the_same_code(fault: str, server: Server, tmp_path: Path) -> None:
    pytest.importorskip("av")
    server.misbehave, message = BAD[fault]
    (tmp_path / "in.y4m").write_bytes(b"YUV4MPEG2 W64 H48 F25:1 C444\n" + b"FRAME\n" + bytes(64 * 48 * 3))
    result = echoir("stream", tmp_path / "in.y4m", "null", "-m", server.url)
    assert result.code == 6
    assert re.search(message, result.err), result.err


def test_a_busy_server_is_asked_again(server: Server, image: np.ndarray[Any, Any], halving: Artifact) -> None:
    refused = iter([True, True, False, True, False])

    def busy(handler: Handler, asked: dict[str, Any], restored: np.ndarray[Any, Any]) -> bool:
        if next(refused, False):
            handler.refuse(503, "Exceeds maximum queue size")
            return True
        return False

    server.misbehave = busy
    with Restorer.open(server.url) as remote, Restorer.open(halving.model_path) as local:
        assert np.array_equal(remote(image), local(image))
    assert next(refused, None) is None


def test_an_idle_connection_that_the_server_closed_is_no_failure(server: Server, image: np.ndarray[Any, Any]) -> None:
    def closing(handler: Handler, asked: dict[str, Any], restored: np.ndarray[Any, Any]) -> bool:
        handler.answer(asked, restored)
        handler.close_connection = True  # without having said so
        return True

    server.misbehave = closing
    with Restorer.open(server.url) as restorer:
        assert (restorer(image) <= 128).all()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (says(500, b""), "ready, but a canary tile failed.*answered 500"),
        (answers(lambda tiles: tiles[:0]), "ready, but a canary tile failed.*shape"),
        (answers(np.zeros_like), "ready, but a canary tile failed.*one value 0"),
        (answers(lambda tiles: tiles * np.float32("nan")), "ready, but a canary tile failed.*NaN"),
    ],
)
def test_a_server_that_is_ready_but_dead_is_found_out_at_once(fault: Misbehave, message: str, server: Server) -> None:
    server.canaries, server.misbehave = 0, fault
    with pytest.raises(BackendError, match=message):
        Restorer.open(server.url)


def test_a_model_that_is_not_ready_or_not_there_is_said(server: Server) -> None:
    with pytest.raises(BackendError, match=r"404.*is its name right"):
        open_model(server.url + "2")
    server.ready = False
    with pytest.raises(BackendError, match="the model is not ready"):
        open_model(server.url)


def test_a_server_that_is_not_there_is_said_at_once() -> None:
    with socket.socket() as taken:  # bound, not listening
        taken.bind(("127.0.0.1", 0))
        began = time.monotonic()
        result = echoir("inspect", f"http://127.0.0.1:{taken.getsockname()[1]}/denoise")
    assert time.monotonic() - began < 2
    assert result.code == 6
    assert "cannot be reached" in result.err


def test_a_server_that_goes_away_and_comes_back_costs_a_pause(
    halving: Artifact, repository: Path, image: np.ndarray[Any, Any]
) -> None:
    with serving(halving, repository) as first:
        port = first.server_address[1]
        restorer = Restorer.open(first.url + "?patience=5")

    done = threading.Event()

    def come_back() -> None:
        time.sleep(0.3)
        with serving(halving, repository, port):
            done.wait(10)

    thread = threading.Thread(target=come_back, daemon=True)
    thread.start()
    began = time.monotonic()
    with restorer:
        assert (restorer(image) <= 128).all()
    assert time.monotonic() - began >= 0.3
    done.set()
    thread.join()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["parameters"].clear(), "parameters.echoir_manifest: found nothing.*echoir triton"),
        (lambda config: config["input"][0].update(dims=["3", "32", "32"]), "input.shape"),
        (lambda config: config["output"][0].update(name="logits"), "output.name: found logits, needed restored"),
        (lambda config: config["input"][0].update(data_type="TYPE_UINT8"), "input.dtype: found uint8, needed float32"),
        (lambda config: config["output"].append(config["output"][0]), "output: found .*, needed one tensor"),
        (lambda config: config.update(max_batch_size=0), "input.shape"),
    ],
)
def test_a_model_that_is_not_its_manifest_s_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, server: Server, tmp_path: Path
) -> None:
    change(server.config)
    with pytest.raises(ArtifactError, match=message):
        open_model(server.url)
    Image.new("RGB", (50, 50)).save(tmp_path / "a.png")
    assert echoir("restore", tmp_path / "a.png", "-m", server.url, "-o", tmp_path / "out").code == 4


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("grpc://localhost:8001/denoise", "gRPC is not spoken"),
        ("ftp://localhost/denoise", "needed http://HOST:PORT/MODEL"),
        ("http://localhost:8000", "needed http://HOST:PORT/MODEL"),
        ("http://localhost:99999/denoise", "needed http://HOST:PORT/MODEL"),
        ("http://me:secret@localhost/denoise", "needed http://HOST:PORT/MODEL"),
        ("http://localhost/denoise?timeout=0", "timeout is '0', needed seconds"),
        ("http://localhost/denoise?patience=long", "patience is 'long', needed seconds"),
        ("http://localhost/denoise?time=5", "time is unknown"),
    ],
)
def test_an_address_that_makes_no_sense_is_refused(address: str, message: str) -> None:
    with pytest.raises(BackendError, match=re.escape(message)) as caught:
        open_model(address)
    assert "secret" not in str(caught.value)


def test_tiles_of_another_shape_never_leave(server: Server) -> None:
    with open_session(open_model(server.url)) as session, pytest.raises(ValueError, match="tiles must be float32"):
        session.run(np.zeros((1, 3, 32, 32), np.float32))
    assert len(server.batches) == 1  # the canary
