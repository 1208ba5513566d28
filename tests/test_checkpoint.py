"""Checkpoints: what was saved comes back, and what is not one is refused by name."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from echoir.checkpoint import SHIPPED, load_checkpoint, save_checkpoint
from echoir.degradations import TASKS
from echoir.networks.echoir import EchoIR
from echoir.runtime.errors import ArtifactError


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, EchoIR]:
    torch.manual_seed(0)
    network = EchoIR.from_preset("tiny", channel_attention=False)
    path = tmp_path / "weights.safetensors"
    save_checkpoint(path, network, "denoise", "tiny", {"steps": 5})
    return path, network


def test_everything_saved_comes_back(saved: tuple[Path, EchoIR]) -> None:
    path, network = saved
    loaded = load_checkpoint(path)
    assert (loaded.task, loaded.preset, loaded.metadata) == ("denoise", "tiny", {"steps": 5})
    assert loaded.network.config == network.config
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not loaded.network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor)


def test_the_file_is_readable_by_others(saved: tuple[Path, EchoIR]) -> None:
    assert saved[0].stat().st_mode & stat.S_IRGRP


def test_unknown_names_list_the_shipped_ones() -> None:
    with pytest.raises(ArtifactError, match=r"checkpoint: found sharpen, needed .* a shipped name \(.*denoise"):
        load_checkpoint("sharpen")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "without an 'echoir' header"),
        ({"format": 99}, "checkpoint.format: found 99, needed 1"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, header: dict[str, int] | None, message: str) -> None:
    path = tmp_path / "foreign.safetensors"
    metadata = None if header is None else {"echoir": json.dumps(header)}
    save_file({"weight": torch.zeros(1)}, path, metadata)
    with pytest.raises(ArtifactError, match=message):
        load_checkpoint(path)


def test_a_truncated_file_is_refused(saved: tuple[Path, EchoIR]) -> None:
    path, _ = saved
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="a safetensors file"):
        load_checkpoint(path)


def test_tensors_that_do_not_fit_the_header_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    described = {"format": 1, "task": "denoise", "preset": "tiny", "metadata": {}}
    described["config"] = EchoIR.from_preset("tiny").config.to_dict()
    save_file({"embed.weight": torch.zeros(1)}, path, {"echoir": json.dumps(described)})
    with pytest.raises(ArtifactError, match=r"checkpoint\.tensors"):
        load_checkpoint(path)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_checkpoint_that_says_how_it_was_made(task: str) -> None:
    checkpoint = load_checkpoint(task)
    assert checkpoint.path.parent == SHIPPED
    assert (checkpoint.task, checkpoint.preset) == (task, "tiny")
    assert checkpoint.metadata["recipe"]["strategy"] == "as-blo"
    assert f"`{task}`" in (SHIPPED / "README.md").read_text(encoding="utf-8")
