"""The TensorRT session on a pretended GPU (tests/fake_gpu.py says what is real there and what is not).

Its images are compared with those of ONNX Runtime on the host, to the bit, while streams take turns at random.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import fake_gpu
import numpy as np
import pytest
from builders import Io, make_artifact
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.contract import Described
from echoir.runtime.cuda.driver import KERNELS
from echoir.runtime.cuda.session import TensorRTSession
from echoir.runtime.descriptor import Descriptor, Planes
from echoir.runtime.errors import ArtifactError, BackendError, RejectedOutputError
from echoir.runtime.manifest import Engine, Model, TensorSpec
from echoir.runtime.restorer import Restorer
from echoir.runtime.sessions import open_session

Array = np.ndarray[Any, np.dtype[Any]]
Start = Callable[..., fake_gpu.Gpu]


@pytest.fixture
def start(kernels: ctypes.CDLL) -> Iterator[Start]:
    """Starts a pretended GPU; see :func:`fake_gpu.installed`."""
    with ExitStack() as gpus:

        def start(version: str = "10.9.0", **options: Any) -> fake_gpu.Gpu:
            gpu = fake_gpu.Gpu(kernels, **options)
            gpus.enter_context(fake_gpu.installed(gpu, fake_gpu.tensorrt(gpu, version)))
            return gpu

        yield start


def make_engine(
    folder: Path, *, details: dict[str, Any] | None = None, version: str = "10.9.0", **options: Any
) -> tuple[Artifact, Artifact]:
    """The same model as an ONNX artifact and as a pretended engine."""
    source = make_artifact(folder, **options)
    path = folder / "built.engine"
    shutil.copy(source.model_path, path)
    engine = Engine(version, ("8.7",), 1.0, "Fake GPU", details=details or {})
    return source, write_artifact(replace(source.manifest, model=Model("tensorrt"), engine=engine), path)


def picture(rng: np.random.Generator, height: int, width: int, dtype: Any, gray: bool) -> Array:
    shape = (height, width) if gray else (height, width, 3)
    if dtype == np.float32:
        return rng.random(shape, np.float32)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_images_equal_those_of_the_host_whatever_order_the_streams_take(
    data: st.DataObject, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    io: Io = data.draw(st.sampled_from(["float", "uint8"]))
    dtype = np.uint8 if io == "uint8" else data.draw(st.sampled_from([np.uint8, np.uint16, np.float32]))
    batch = data.draw(st.sampled_from([None, 1, 2, 3]))
    start(seed=data.draw(st.integers(0, 2**16)), graphs=data.draw(st.booleans()))
    source, engine = make_engine(
        tmp_path_factory.mktemp("engine"), io=io, tile=(16, 24), overlap=4, batch=batch, gain=0.75, bias=0.125
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    options: dict[str, Any] = {"overlap": data.draw(st.integers(0, 15)), "batch": data.draw(st.integers(1, 4))}
    gray = data.draw(st.booleans())
    with Restorer.open(source.model_path, **options) as host, Restorer.open(engine.model_path, **options) as device:
        for _ in range(2):  # the second through the first one's buffers, unless it is of another size
            height, width = data.draw(st.sampled_from([(1, 1), (9, 50), (70, 33), (16, 24)]))
            image = picture(rng, height, width, dtype, gray)
            told: list[tuple[int, int]] = []
            restored = device(image, on_tiles=lambda done, total, told=told: told.append((done, total)))
            np.testing.assert_array_equal(restored, host(image))
            assert told[-1] == (device.tiles(height, width),) * 2


PICTURES: dict[Planes, tuple[int, ...]] = {"gray": (1, 3), "RGB": (1, 3), "RGGB": (1, 4), "RGB pair": (6,)}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_images_through_other_networks_equal_those_of_the_host(
    data: st.DataObject, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any scale, channels and phase; every place of a tile gives another value."""
    planes = data.draw(st.sampled_from(list(PICTURES)))
    made: Planes = data.draw(st.sampled_from(["gray", "RGB"]))
    io: Io = data.draw(st.sampled_from(["float", "uint8"]))
    dtype = np.uint8 if io == "uint8" else data.draw(st.sampled_from([np.uint8, np.uint16, np.float32]))
    phase = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.sampled_from([1, 3, 8]))
    network = Descriptor(
        "Repeat", "sr", 1, scale=data.draw(st.integers(1, 4)), input=planes, output=made, phase=phase, multiple=(8, 8)
    )
    start(seed=data.draw(st.integers(0, 2**16)))
    source, engine = make_engine(
        tmp_path_factory.mktemp("engine"),
        io=io,
        tile=(8, 16),
        overlap=0,
        batch=data.draw(st.sampled_from([None, 1, 3])),
        gain=0.5,
        network=network,
        ramp=True,
    )
    channels = 1 if (planes, made) == ("gray", "RGB") else data.draw(st.sampled_from(PICTURES[planes]))
    mosaic = 2 if planes == "RGGB" and channels == 1 else 1
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    options: dict[str, Any] = {"overlap": data.draw(st.integers(0, 4)), "batch": data.draw(st.integers(1, 4))}
    options["threads"] = 1  # as the stand-in's: the sum of a mean depends on how threads divide it
    with Restorer.open(source.model_path, **options) as host, Restorer.open(engine.model_path, **options) as device:
        for _ in range(2):
            height, width = mosaic * data.draw(st.integers(1, 30)), mosaic * data.draw(st.integers(1, 50))
            image = picture(rng, height, width, dtype, True)
            if channels > 1:
                image = np.stack([picture(rng, height, width, dtype, True) for _ in range(channels)], axis=-1)
            told: list[tuple[int, int]] = []
            restored = device(image, on_tiles=lambda done, total, told=told: told.append((done, total)))
            # ONNX Runtime's mean of three planes may differ in its last bit from batch to batch.
            last_bit = 2.0**-23 if (planes, made) == ("RGB", "gray") and restored.dtype == np.float32 else 0.0
            np.testing.assert_allclose(restored, host(image), rtol=0, atol=last_bit)
            assert told[-1] == (device.tiles(height, width, channels),) * 2


def test_a_suspect_pass_of_a_tile_is_named_by_its_place(start: Start, tmp_path: Path, rng: np.random.Generator) -> None:
    """The second plane of the third place in the second row of tiles, whose mosaic starts at pixel (8, 32)."""
    start()
    network = Descriptor("Repeat", "denoise", 1, input="gray", output="gray", multiple=(8, 8))
    _, engine = make_engine(tmp_path, tile=(8, 16), overlap=0, network=network, bias=0.0, gain=3.0e38)
    image = np.zeros((16, 48, 3), np.float32)
    image[10, 40, 1] = 2.0
    message = "infinite pixels of the tile at row 8, column 32"
    with Restorer.open(engine.model_path) as device, pytest.raises(RejectedOutputError, match=message):
        device(image)


def test_nothing_is_allocated_and_every_pixel_crosses_once_from_the_second_frame_on(
    start: Start, tmp_path: Path, rng: np.random.Generator
) -> None:
    gpu = start()
    _, engine = make_engine(tmp_path, tile=(16, 24), overlap=4, batch=2)
    image = picture(rng, 70, 90, np.uint8, gray=False)
    with Restorer.open(engine.model_path) as device:
        device(image)
        before, crossed = gpu.calls.copy(), gpu.bytes.copy()
        for _ in range(3):
            device(image)
        new = gpu.calls - before
        made = ("mem_alloc", "pagelocked_empty", "Stream", "Event", "create_execution_context", "begin_capture", "free")
        assert {name: new[name] for name in made} == dict.fromkeys(made, 0)
        flags = 8 * device.tiles(70, 90)
        assert gpu.bytes["up"] - crossed["up"] == 3 * image.nbytes
        assert gpu.bytes["down"] - crossed["down"] == 3 * (image.nbytes + flags)
        assert new["execute_async_v3"] == 0  # every batch is a graph
        assert new["graph_launch"] == 3 * -(-5 // 2) * 6  # 5 x 6 tiles, two at a time


def test_the_session_says_what_a_figure_depends_on(start: Start, tmp_path: Path) -> None:
    start()
    _, engine = make_engine(tmp_path)
    with open_session(engine) as session:
        assert isinstance(session, Described)
        facts = session.facts()
    assert facts["tensorrt"] == "10.9.0"
    assert facts["driver"] == "CUDA 13.1"
    assert "compute capability 8.7" in facts["gpu"]


def test_without_graphs_every_batch_is_a_call(start: Start, tmp_path: Path, rng: np.random.Generator) -> None:
    gpu = start(graphs=False)
    _, engine = make_engine(tmp_path, tile=(16, 24), overlap=4, batch=2)
    with open_session(engine) as session:
        tiles = rng.random((5, 3, 16, 24), np.float32)
        np.testing.assert_array_equal(session.run(tiles), tiles)
    assert gpu.calls["graph_launch"] == 0
    assert gpu.calls["execute_async_v3"] == 2 + 2 + 3 - 2  # a first run per slot, none recorded, three batches


@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_number_of_tiles_runs(
    start: Start, tmp_path: Path, rng: np.random.Generator, batch: int | None, count: int
) -> None:
    start(seed=count)
    _, engine = make_engine(tmp_path, tile=(16, 24), batch=batch, gain=0.5)
    tiles = rng.random((count, 3, 16, 24), np.float32)
    with open_session(engine) as session:
        for _ in range(2):
            np.testing.assert_array_equal(session.run(tiles), tiles * np.float32(0.5))
        with pytest.raises(ValueError, match=r"tiles must be float32 \(0, 3, 16, 24\)"):
            session.run(tiles[:0])


def test_two_threads_do_not_mix_images(start: Start, tmp_path: Path, rng: np.random.Generator) -> None:
    gpu = start()
    source, engine = make_engine(tmp_path, tile=(16, 24), overlap=4, gain=0.5)
    images = [picture(rng, 60 + i, 70, np.uint8, gray=False) for i in range(4)]
    with Restorer.open(source.model_path) as host:
        expected = [host(image) for image in images]
    wrong: list[int] = []
    with Restorer.open(engine.model_path) as device:

        def work(index: int) -> None:
            for _ in range(4):
                if not np.array_equal(device(images[index]), expected[index]):
                    wrong.append(index)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert gpu.calls["create_execution_context"] <= 4


def test_images_taken_in_turn_in_one_thread_do_not_wait_for_each_other(
    start: Start, tmp_path: Path, rng: np.random.Generator
) -> None:
    start()
    _, engine = make_engine(tmp_path, tile=(16, 24), overlap=4)
    images = [picture(rng, 70, 30, np.uint8, gray=False) for _ in range(2)]
    with Restorer.open(engine.model_path) as device:
        made = [device.strips(lambda a, b, image=image: image[a:b], 70, 30) for image in images]
        parts: list[list[Array]] = [[], []]
        for pair in zip(*made, strict=True):
            for part, rows in zip(parts, pair, strict=True):
                part.append(rows.copy())
    for image, part in zip(images, parts, strict=True):
        np.testing.assert_array_equal(np.concatenate(part), image)


def test_an_image_given_up_halfway_leaves_the_session_usable(
    start: Start, tmp_path: Path, rng: np.random.Generator
) -> None:
    gpu = start()
    _, engine = make_engine(tmp_path, tile=(16, 24), overlap=4)
    image = picture(rng, 90, 30, np.uint16, gray=False)
    with Restorer.open(engine.model_path) as device:
        with closing(device.strips(lambda a, b: image[a:b], 90, 30)) as strips:  # type: ignore[type-var]
            next(strips)
        assert not any(stream.work for stream in gpu.streams)
        np.testing.assert_array_equal(device(image), image)
        assert gpu.calls["create_execution_context"] == 1


@pytest.mark.parametrize(
    "call",
    [
        *("mem_alloc", "pagelocked_empty", "Stream", "Event", "launch", "memcpy_htod_async", "memcpy_dtoh_async"),
        *("execute_async_v3", "create_execution_context", "module_from_buffer", "synchronize", "memset"),
    ],
)
@pytest.mark.parametrize("after", [1, 2, 6])
def test_a_failing_call_ends_in_one_error_and_nothing_is_left(
    call: str, after: int, start: Start, tmp_path: Path, rng: np.random.Generator
) -> None:
    gpu = start(fail={call: after})
    _, engine = make_engine(tmp_path, tile=(16, 24), overlap=4)
    image = picture(rng, 70, 50, np.uint8, gray=False)

    def restore() -> Array:
        with Restorer.open(engine.model_path) as device:
            return device(image)

    few = {"module_from_buffer": 1, "create_execution_context": 1, "execute_async_v3": 4}  # calls in all
    if after > few.get(call, after):
        np.testing.assert_array_equal(restore(), image)
    else:
        with pytest.raises(BackendError, match=rf"tensorrt stopped on Fake GPU: .*{call} was told to fail"):
            restore()
    assert not gpu.allocations


def test_a_session_goes_on_after_a_failed_call(start: Start, tmp_path: Path, rng: np.random.Generator) -> None:
    gpu = start()
    _, engine = make_engine(tmp_path, tile=(16, 24))
    tiles = rng.random((2, 3, 16, 24), np.float32)
    with open_session(engine) as session:
        gpu.fail["memcpy_dtoh_async"] = 1
        with pytest.raises(BackendError):
            session.run(tiles)
        np.testing.assert_array_equal(session.run(tiles), tiles)


def test_closing_while_another_thread_works_waits_for_it(start: Start, tmp_path: Path) -> None:
    gpu = start()
    _, engine = make_engine(tmp_path, tile=(16, 24), overlap=4)
    image = np.arange(90 * 30 * 3, dtype=np.uint16).reshape(90, 30, 3)
    device = Restorer.open(engine.model_path)
    strips = device.strips(lambda a, b: image[a:b], 90, 30)
    parts = [next(strips).copy()]
    device.close()
    assert gpu.allocations
    parts += [rows.copy() for rows in strips]
    np.testing.assert_array_equal(np.concatenate(parts), image)
    assert not gpu.allocations
    with pytest.raises(ValueError, match="closed"):
        device(image)


@pytest.mark.parametrize("bias", [float("nan"), float("inf")])
def test_broken_pixels_are_refused_by_tile(start: Start, tmp_path: Path, rng: np.random.Generator, bias: float) -> None:
    start()
    _, engine = make_engine(tmp_path, tile=(16, 24), overlap=4, bias=bias)
    kind = "NaN" if np.isnan(bias) else "infinite"
    with Restorer.open(engine.model_path) as device, pytest.raises(RejectedOutputError, match=rf"{kind}.*row 0, col"):
        device(picture(rng, 40, 50, np.uint8, gray=False))


@pytest.mark.parametrize("io", ["float", "uint8"])
def test_a_constant_output_is_refused_where_the_host_refuses_it(
    io: Io, start: Start, tmp_path: Path, rng: np.random.Generator
) -> None:
    start()
    source, engine = make_engine(tmp_path, io=io, tile=(16, 24), overlap=4, gain=0.0, bias=0.5)
    flat, noisy = np.full((40, 50, 3), 127, np.uint8), picture(rng, 40, 50, np.uint8, gray=False)
    half_black = noisy.copy()
    half_black[20:] = 0
    with Restorer.open(source.model_path) as host, Restorer.open(engine.model_path) as device:
        np.testing.assert_array_equal(device(flat), host(flat))
        for image in (noisy, half_black):
            said = []
            for restorer in (host, device):
                try:
                    restorer(image)
                    said.append("")
                except RejectedOutputError as error:
                    said.append(str(error))
            assert said[0] == said[1]
        assert said[0]


@pytest.mark.parametrize(
    ("changes", "version", "field"),
    [
        ({}, "10.16.0", "engine.tensorrt"),
        ({"options": {"version_compatible": True}}, "11.0.0", "engine.tensorrt"),
        ({"options": {"version_compatible": True}}, "10.3.0", "engine.tensorrt"),
    ],
)
def test_an_engine_of_another_version_is_refused_by_field(
    changes: dict[str, Any], version: str, field: str, start: Start, tmp_path: Path
) -> None:
    start(version)
    _, engine = make_engine(tmp_path, details=changes)
    with pytest.raises(ArtifactError, match=r"build one here from the \.onnx") as caught:
        open_session(engine)
    assert caught.value.field == field


def test_a_version_compatible_engine_opens_in_a_later_version(start: Start, tmp_path: Path) -> None:
    start("10.16.0")
    _, engine = make_engine(tmp_path, details={"options": {"version_compatible": True}})
    open_session(engine).close()


def test_an_engine_for_another_gpu_is_refused_unless_it_is_compatible(start: Start, tmp_path: Path) -> None:
    start()
    _, engine = make_engine(tmp_path)

    def built_for(capability: str, **options: bool) -> Artifact:
        record = Engine("10.9.0", (capability,), 1.0, details={"options": options})
        return write_artifact(replace(engine.manifest, engine=record), engine.model_path)

    with pytest.raises(ArtifactError, match=r"found 8.7 \(Fake GPU\), needed 9.0") as caught:
        open_session(built_for("9.0"))
    assert caught.value.field == "engine.compute_capability"
    open_session(built_for("8.0", hardware_compatible=True)).close()


def test_an_engine_that_does_not_load_says_why(start: Start, tmp_path: Path) -> None:
    start()
    _, engine = make_engine(tmp_path)
    engine.model_path.write_bytes(b"evil")
    with pytest.raises(ArtifactError, match=r"does not load .magic tag does not match"):
        open_session(write_artifact(engine.manifest, engine.model_path))


def test_an_engine_unlike_its_manifest_is_refused(start: Start, tmp_path: Path) -> None:
    start()
    _, engine = make_engine(tmp_path)
    spec = TensorSpec("other", "NCHW", "float32", (0.0, 1.0))
    with pytest.raises(ArtifactError) as caught:
        open_session(write_artifact(replace(engine.manifest, output=spec), engine.model_path))
    assert caught.value.field == "output.name"


def test_no_device_is_a_backend_error(start: Start, tmp_path: Path) -> None:
    start(fail={"Device": 1})
    _, engine = make_engine(tmp_path)
    with pytest.raises(BackendError, match="no CUDA device 0"):
        TensorRTSession(engine)


def test_the_compiled_kernels_are_those_of_the_source() -> None:
    """Recompiled by `python benchmarks/tiles_ptx.py` after every change."""
    folder = resources.files("echoir.runtime.cuda")
    source, ptx = (folder.joinpath(name).read_text() for name in ("tiles.cu", "tiles.ptx"))
    assert ptx.startswith(f"// tiles.cu, SHA-256 {hashlib.sha256(source.encode()).hexdigest()}\n")
    assert re.search(r"^\.version 8\.1$", ptx, re.MULTILINE)
    assert re.search(r"^\.target sm_75$", ptx, re.MULTILINE)
    assert "fma" not in ptx  # the host does not fuse either
    for name, arguments in KERNELS.items():
        entry = re.search(rf"\.entry {name}\(([^)]*)\)", ptx)
        assert entry is not None
        kinds = re.findall(r"\.param \.u(\d+)", entry[1])
        assert kinds == [{"P": "64", "i": "32"}[kind] for kind in arguments]


def test_tensorrt_rtx_compiles_once_a_version_and_machine(
    kernels: ctypes.CDLL, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = make_artifact(tmp_path, tile=(16, 24), overlap=4)
    path = tmp_path / "built.engine"
    shutil.copy(source.model_path, path)
    record: dict[str, Any] = {"model": Model("tensorrt-rtx"), "engine": Engine("1.7", ("8.7",), 1.0, "Fake GPU")}
    engine = write_artifact(replace(source.manifest, **record), path)
    image = picture(rng, 70, 50, np.uint8, gray=False)

    def start(version: str) -> int:
        gpu = fake_gpu.Gpu(kernels)
        module = fake_gpu.tensorrt(gpu, version)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
        with fake_gpu.installed(gpu, module), Restorer.open(engine.model_path) as device:
            np.testing.assert_array_equal(device(image), image)
        return gpu.calls["compile"]

    assert [start("1.7"), start("1.7"), start("1.8"), start("1.8"), start("1.7")] == [1, 0, 1, 0, 0]
    kept = sorted((tmp_path / "cache/echoir/rtx").iterdir())
    assert len(kept) == 2
    for file in kept:
        file.write_bytes(b"damaged")
    assert start("1.7") == 1
