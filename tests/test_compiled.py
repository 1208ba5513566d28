"""Compiled code is used where it computes what eager code does, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from echoir.compiled import Choice, Mode, choose

WANTED = Mode(compiled=True, bfloat16=True)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 3, 3, padding=1))


def error(restored: Tensor, clean: Tensor) -> Tensor:
    return (restored - clean).abs().mean()


def chosen(network: nn.Module, compiler: Callable[..., Any], wanted: Mode = WANTED) -> Choice:
    torch.manual_seed(1)
    return choose(network, (torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)), error, wanted, compiler)


def spoiled(spoil: Callable[[Tensor], Tensor], only_in_bfloat16: bool) -> Callable[..., Any]:
    """A compiler whose gradients are not what they should be, though its output is."""

    def compiler(network: nn.Module, dynamic: bool) -> Callable[[Tensor], Tensor]:
        def forward(image: Tensor) -> Tensor:
            out = network(image)
            if out.dtype == torch.bfloat16 or not only_in_bfloat16:
                out.register_hook(spoil)
            return out

        return forward

    return compiler


def test_right_code_is_used_as_it_was_asked_for(network: nn.Module) -> None:
    choice = chosen(network, lambda network, dynamic: network)
    assert (choice.mode, choice.note) == (WANTED, "")


def test_eager_code_is_not_compared(network: nn.Module) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError

    assert chosen(network, never, Mode(False, True)).forward is network


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda gradient: gradient * float("nan"), "gradients are not finite"),
        (lambda gradient: gradient * 1.5, "gradients are off by 0.5"),
    ],
)
def test_wrong_gradients_are_noticed_and_said(
    network: nn.Module, spoil: Callable[[Tensor], Tensor], reason: str
) -> None:
    choice = chosen(network, spoiled(spoil, only_in_bfloat16=True))
    assert choice.mode in (Mode(True, False), Mode(False, True))
    assert choice.note.startswith("compiled bfloat16 is wrong on this machine (")
    assert reason in choice.note


def test_where_all_compiled_code_is_wrong_eager_code_trains(network: nn.Module) -> None:
    choice = chosen(network, spoiled(lambda gradient: -gradient, only_in_bfloat16=False))
    assert choice.mode == Mode(False, True)
    assert choice.forward is network


def test_a_compiler_that_fails_is_done_without(network: nn.Module) -> None:
    def fails(network: nn.Module, dynamic: bool) -> Callable[[Tensor], Tensor]:
        def forward(image: Tensor) -> Tensor:
            raise RuntimeError("no C++ compiler\nand more")

        return forward

    choice = chosen(network, fails)
    assert choice.mode == Mode(False, True)
    assert "(RuntimeError: no C++ compiler)" in choice.note
