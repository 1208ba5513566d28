"""A step recorded as a CUDA graph is the step as it comes, and what cannot be recorded goes on without."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from echoir.captured import WARM_UP, Captured
from echoir.crops import Batch
from echoir.distributed import World
from echoir.networks.echoir import EchoIR
from echoir.recipe import Recipe, Stage
from echoir.strategy import SingleLevel

SMALL = {"width": 8, "blocks": (1, 1, 1), "middle": 1, "refinement": 0, "stem": 2}


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA whose recording fails, as after an operator that waits for the device."""

    def graph(*_: Any, **__: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: nullcontext(),
        "CUDAGraph": object,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)


def test_a_step_that_cannot_be_recorded_is_taken_piece_by_piece(refusing: None) -> None:
    taken: list[Batch] = []

    def update(batches: Sequence[Batch]) -> Tensor:
        taken.extend(batches)
        return torch.tensor(float(len(taken)))

    captured = Captured(update)
    batch = (torch.zeros(1), torch.ones(1))
    assert [float(captured([batch])) for _ in range(WARM_UP + 2)] == [1, 2, 3, 4, 5], "each batch once, in order"
    assert "operation not permitted when stream is capturing)" in captured.note, "one line of the reason"


@pytest.mark.gpu
def test_recorded_steps_are_the_steps_that_are_launched_one_by_one(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    recipe = Recipe("tiny", (Stage(10, 32, 4),), compile=False, autocast=False)
    batches = [(torch.rand(4, 3, 32, 32, device="cuda"), torch.rand(4, 3, 32, 32, device="cuda")) for _ in range(10)]
    losses = []
    for processes in (1, 2):  # two processes do not record
        torch.manual_seed(0)
        network = EchoIR.from_preset("tiny", **SMALL).cuda()
        world = World(device="cuda") if processes == 1 else _Several(device="cuda", size=2)
        strategy = SingleLevel(network, recipe, world, lambda restored, clean: (restored - clean).abs().mean())
        losses.append([float(strategy.step([batch], 1e-3)["loss"]) for batch in batches])  # type: ignore[arg-type]
        assert not strategy.notes
        assert bool(strategy._captured) is (processes == 1)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


class _Several(World):
    def average(self, tensors: Sequence[Tensor]) -> None:
        """The other process is this one."""
