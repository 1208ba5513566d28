"""The forward kernel as PTX: what a driver will be given."""

from __future__ import annotations

import re
import sys

import pytest

from echoir.export.echo import ptx
from echoir.export.echo.ptx import TARGETS, CompiledKernel, assemble, compile_forward
from echoir.runtime.errors import BackendError, MissingExtraError

triton = pytest.importorskip("triton", reason="needs pip install '.[kernel]'")
slow = pytest.mark.slow


def parameters(kernel: CompiledKernel) -> list[str]:
    """Types of the entry point's parameters."""
    entry = re.search(rf"\.entry {kernel.name}\((.*?)\n\)", kernel.ptx, re.DOTALL)
    assert entry
    return re.findall(r"\.param \.(\w+)", entry[1])


@pytest.mark.parametrize("target", [87, pytest.param(90, marks=slow), pytest.param(110, marks=slow), 120])
def test_every_target_gets_a_text_that_its_driver_reads_and_no_spills(target: int) -> None:
    if target == 110 and triton.__version__.startswith("3.6."):
        pytest.skip("this Triton's assembler does not know sm_110")
    kernel = compile_forward(target, 48, 48)
    assert f".version {'.'.join(map(str, TARGETS[target]))}\n" in kernel.ptx
    assert re.search(rf"^\.target sm_{target}$", kernel.ptx, re.MULTILINE)  # not sm_90a, which no later GPU takes
    assert parameters(kernel) == ["u64"] * 4 + ["u32"] * 2 + ["u64"]
    assert f".reqntid {kernel.threads}\n" in kernel.ptx
    assert __file__.split("tests")[0] not in kernel.ptx
    usage = assemble(kernel)
    assert usage.registers > 0
    assert usage.spills == usage.shared == kernel.shared == 0


def test_lanes_that_share_a_cell_add_up_through_shared_memory() -> None:
    kernel = compile_forward(87, 192, 192, plane=(1, 32, 32))
    assert kernel.tiling.lanes == 16
    assert kernel.grid(1, 32, 32) == (4, 32, 1)
    assert 0 < kernel.shared <= 48 << 10
    assert assemble(kernel).spills == 0


@slow
def test_other_types_weights_and_radii_compile() -> None:
    kernel = compile_forward(90, 16, 24, storage="bf16", combine="product", radius=2)
    assert assemble(kernel).registers > 0


def test_refuses_what_it_cannot_compile_or_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="no PTX for sm_75; known are sm_80"):
        compile_forward(75, 16, 16)
    with pytest.raises(BackendError, match="does not end its parameters"):
        ptx.without_scratch(".entry k(\n\t.param .u64 .ptr k_0,\n\t.param .u32 k_1\n)\n{ ret; }", "k")
    with pytest.raises(BackendError, match="does not end its parameters"):  # scratch that is read must stay
        ptx.without_scratch(".entry k(\n\t.param .u64 .ptr k_0,\n\t.param .u64 .ptr k_1\n)\n{ ld [k_1]; }", "k")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingExtraError, match=r"echoir\[kernel\]"):
        compile_forward(87, 16, 16)
