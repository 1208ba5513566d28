"""The plugin's kernel: which code for which GPU and tensors. How TensorRT is told: test_tensorrt_contract.py."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from echoir.export.echo.plugin_code import compile_for, for_class, target_for
from echoir.runtime.cuda import plugin_class
from echoir.runtime.cuda.plugin_class import DriverKernel, KernelCode
from echoir.runtime.errors import BackendError

HALF, FLOAT, INT32 = (SimpleNamespace(name=name) for name in ("HALF", "FLOAT", "INT32"))
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs pip install '.[kernel]'")


@pytest.mark.parametrize(
    ("capability", "target"),
    [("8.0", 80), ("8.7", 87), ("8.9", 89), ("9.0", 90), ("10.3", 100), ("11.0", 110), ("12.1", 120)],
)
def test_a_gpu_gets_its_own_code_or_that_of_the_next_older(capability: str, target: int) -> None:
    assert target_for(capability) == target


def test_a_gpu_older_than_all_is_refused() -> None:
    with pytest.raises(BackendError, match=r"needs compute capability 8\.0 or later, not 7\.5"):
        target_for("7.5")


@pytest.mark.parametrize(
    ("guide", "types", "reason"),
    [
        ((1, 8, 60, 100), (INT32, INT32, FLOAT), "floating type"),
        ((1, 8, 60, 100), (HALF, FLOAT, FLOAT), "one floating type"),
        ((1, 8, 60, 99), (HALF, HALF, FLOAT), r"twice the size of \(1, 16, 30, 50\)"),
    ],
)
def test_tensors_the_kernel_does_not_take_are_refused(guide: Any, types: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        compile_for(80, (1, 16, 30, 50), guide, types, 1, 0)


@needs_triton
@pytest.mark.slow
def test_the_code_of_a_node_is_for_its_gpu_and_covers_its_plane() -> None:
    code = for_class("8.7")((2, 16, 30, 50), (2, 8, 60, 100), (HALF, HALF, FLOAT), 1, 0)
    assert ".target sm_87" in code.ptx
    assert f".entry {code.name}(" in code.ptx
    across, down, batch = code.grid(2, 30, 50)
    assert batch == 2
    assert (across - 1) * code.columns < 50 <= across * code.columns
    assert (down - 1) * code.rows < 30 <= down * code.rows


@pytest.mark.parametrize("height", [1, 7, 8, 9])
def test_a_grid_covers_every_cell_once(height: int) -> None:
    assert KernelCode("k", "", 128, 0, 8, 32).grid(3, height, 64) == (2, -(-height // 8), 3)


class Driver:
    """The four functions of libcuda that a kernel is launched with; a fake that reads what it is given."""

    def __init__(self, refuse: int = 0) -> None:
        self.refuse, self.launched = refuse, list[Any]()

    def cuModuleLoadData(self, module: Any, text: ctypes.c_char_p) -> int:  # noqa: N802
        self.text = text.value
        return self.refuse

    def cuModuleGetFunction(self, function: Any, module: Any, name: ctypes.c_char_p) -> int:  # noqa: N802
        function._obj.value = 5
        return 0

    def cuLaunchKernel(self, function: Any, *rest: Any) -> int:  # noqa: N802
        *geometry, stream, pointers, extra = rest
        kinds = [ctypes.c_uint64] * 4 + [ctypes.c_int] * 2 + [ctypes.c_uint64]
        values = [kind.from_address(address).value for kind, address in zip(kinds, pointers, strict=True)]
        self.launched.append((function.value, geometry, stream.value, values, extra))
        return 0


def test_a_kernel_is_launched_with_pointers_scalars_and_the_output_in_this_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver()
    monkeypatch.setattr(plugin_class, "driver_library", lambda: driver)
    kernel = DriverKernel(".version 8.0", "k")
    assert driver.text == b".version 8.0"
    arguments = (*map(ctypes.c_void_p, (10, 20, 30, 40)), ctypes.c_int(6), ctypes.c_int(7), ctypes.c_void_p(50))
    assert kernel.launch(99, (1, 2, 3), (128, 1, 1), 64, arguments) == 0
    assert driver.launched == [(5, [1, 2, 3, 128, 1, 1, 64], 99, [10, 20, 30, 40, 6, 7, 50], None)]


def test_a_driver_too_old_for_the_code_is_named_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_class, "driver_library", lambda: Driver(refuse=222))
    with pytest.raises(BackendError, match=r"CUDA error 222; PTX \.version 9\.0"):
        DriverKernel(".version 9.0\n.target sm_110", "k")


@pytest.mark.parametrize(("broken", "reads"), [(True, False), (False, True)])
def test_bindings_that_misread_arrays_are_noticed_before_anything_is_registered(broken: bool, reads: bool) -> None:
    def field(name: str, values: Any, kind: Any) -> Any:
        return SimpleNamespace(data=np.full_like(values, values[0]) if broken else values)

    trt = SimpleNamespace(
        PluginField=field, PluginFieldType=SimpleNamespace(INT32=0), __version__="10.3.0", get_plugin_registry=None
    )
    assert plugin_class.reads_fields(trt) is reads
    if broken:
        with pytest.raises(BackendError, match=r"10\.3\.0 misreads arrays of numpy .* pip install 'numpy<2'"):
            plugin_class.register(trt)
