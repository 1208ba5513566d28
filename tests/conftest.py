"""Fixtures shared by all tests."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
from collections.abc import Iterator

import fake_gpu
import numpy as np
import pytest
from builders import make_artifact

from echoir.runtime.artifact import Artifact

os.environ.update({"MKL_CBWR": "AUTO", "MKL_DYNAMIC": "FALSE"})  # as echoir train does, before torch is imported


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run far from the repository: Python looks in the working folder first, and a clone is found before the wheel."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from the user's cache or left in it."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact that changes nothing: float NCHW, tile 64, overlap 8, any batch."""
    return make_artifact(tmp_path_factory.mktemp("identity"), "identity")


@pytest.fixture(scope="session")
def identity_uint8(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same with 8-bit NHWC pixels."""
    return make_artifact(tmp_path_factory.mktemp("identity"), "identity", io="uint8")


@pytest.fixture(scope="session")
def gain(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact that halves every pixel, float NCHW, fixed batch 2: visible that it ran."""
    return make_artifact(tmp_path_factory.mktemp("gain"), "gain", gain=0.5, batch=2)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the tests were started in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels of tiles.cu for the pretended GPU."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler for the kernels")
    return fake_gpu.compile_kernels(tmp_path_factory.mktemp("kernels"), compiler)
