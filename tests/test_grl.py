"""GRL against the paper's parameter counts, and against its formulas written out with everything stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from naive_grl import naive_grl, official_shapes, random_state

from echoir.networks.grl import GRL, SIZES, TASKS, Attend, Grid, GRLConfig
from echoir.networks.grl_official import from_official

slow = pytest.mark.slow


def on_meta(size: str, **switches: Any) -> GRL:
    with torch.device("meta"):
        return GRL.from_preset(size, **switches)


def loaded(config: GRLConfig, seed: int = 0) -> tuple[GRL, dict[str, torch.Tensor]]:
    """A network with the weights of an official checkpoint, and that checkpoint."""
    state = random_state(config, seed)
    network = GRL(config).eval().requires_grad_(False)
    network.load_state_dict(from_official(state))
    return network, state


def small(task: str, size: str = "t", **switches: Any) -> GRLConfig:
    """One stage of few channels and one head with the windows, stripes and shifts of a task."""
    narrow = {"width": 36 if size == "b" else 12, "heads": 1, "depths": (4,)}
    return GRLConfig.from_preset(size, task=task, **narrow | switches)


@pytest.mark.parametrize(
    ("size", "task", "parameters"),
    [
        ("t", "denoise", 880_227),
        ("s", "denoise", 3_120_227),
        ("b", "denoise", 19_805_263),
        ("t", "sr", 906_192),
        ("s", "sr", 3_487_715),
        ("b", "sr", 20_201_299),
        ("b", "realsr", 20_016_659),
        ("b", "deblur", 19_805_263),
        ("b", "defocus", 19_805_263),
    ],
)
def test_parameters_match_the_slides(size: str, task: str, parameters: int) -> None:
    assert sum(p.numel() for p in on_meta(size, task=task).parameters()) == parameters


def test_the_state_holds_parameters_alone() -> None:
    network = on_meta("t")
    assert network.state_dict().keys() == dict(network.named_parameters()).keys()


@pytest.mark.parametrize(
    ("size", "task", "switches", "picture"),
    [
        ("t", "denoise", {}, (100, 130)),  # pads both sides by reflection, and the stripes lie both ways
        ("t", "sr", {"scale": 3}, (65, 64)),
        ("s", "sr", {"scale": 2, "depths": (2,)}, (64, 33)),
        ("b", "realsr", {}, (50, 63)),
        ("s", "demosaic", {}, (95, 64)),
        ("t", "demosaic", {}, (7, 40)),  # too low to reflect
        ("t", "demosaic", {"depths": (3, 5), "width": 24, "heads": 2}, (32, 32)),
        ("t", "demosaic", {"inputs": 1, "outputs": 1, "anchor": 2}, (32, 40)),
        ("t", "demosaic", {"inputs": 6}, (30, 32)),
        ("b", "demosaic", {"heads": 3}, (61, 57)),
        pytest.param("b", "denoise", {}, (128, 120), marks=slow),  # window 32, an anchor for 2 x 2
        pytest.param("s", "sr", {"scale": 3}, (61, 64), marks=slow),
        pytest.param("b", "sr", {}, (63, 50), marks=slow),  # an anchor for 2 x 2
        pytest.param("s", "jpeg", {}, (144, 99), marks=slow),
        pytest.param("b", "deblur", {}, (96, 180), marks=slow),
        pytest.param("b", "defocus", {}, (97, 90), marks=slow),
        pytest.param("b", "dual-defocus", {}, (95, 81), marks=slow),
    ],
)
def test_agrees_with_the_stored_form(size: str, task: str, switches: dict[str, Any], picture: tuple[int, int]) -> None:
    config = small(task, size, **switches)
    network, state = loaded(config)
    image = torch.rand(1, config.inputs, *picture, generator=torch.Generator().manual_seed(0))
    restored, expected = network(image), naive_grl(state, config, image)
    assert restored.shape == (1, config.outputs, picture[0] * config.scale, picture[1] * config.scale)
    assert expected.std() > 0.05
    assert (restored - expected).abs().max() < 1e-5 * max(1.0, expected.abs().max().item())


@slow
@pytest.mark.parametrize(
    ("size", "task", "picture"),
    [("s", "denoise", (128, 100)), ("s", "sr", (64, 50)), ("b", "realsr", (50, 63)), ("b", "demosaic", (32, 40))],
)
def test_whole_networks_agree_with_the_stored_form(size: str, task: str, picture: tuple[int, int]) -> None:
    config = GRLConfig.from_preset(size, task=task)
    network, state = loaded(config)
    image = torch.rand(1, 3, *picture, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        restored, expected = network(image), naive_grl(state, config, image)
    assert expected.std() > 0.05
    assert (restored - expected).abs().max() < 1e-5 * max(1.0, expected.abs().max().item())


def test_a_batch_is_its_pictures_one_by_one() -> None:
    network, _ = loaded(small("demosaic"))
    network.double()
    images = torch.rand(2, 3, 32, 64, dtype=torch.float64)
    together = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), together, atol=1e-9, rtol=0)


def test_gradients_agree_with_the_stored_form() -> None:
    config = small("demosaic", "b", depths=(3,), heads=2)
    state = {name: tensor.double().requires_grad_() for name, tensor in random_state(config).items()}
    network = GRL(config).double()
    network.load_state_dict({name: tensor.detach() for name, tensor in from_official(state).items()})
    image = torch.rand(1, 3, 40, 64, dtype=torch.float64)
    network(image).square().mean().backward()
    naive_grl(state, config, image).square().mean().backward()
    ours = {name: parameter.grad for name, parameter in network.named_parameters()}
    for name, tensor in from_official(state).items():
        grad = ours[name]
        assert grad is not None
        torch.testing.assert_close(grad, tensor.grad, atol=1e-9, rtol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", SIZES)
def test_loads_official_checkpoints(size: str, task: str) -> None:
    network = on_meta(size, task=task)
    buffers = ("table_w", "index_sh_a2w", "mask_sv_w2a", "layers.0.blocks.0.attn.window_attn.attn_transform.attn_mask")
    shapes = official_shapes(network.config) | dict.fromkeys(buffers, (1,))
    theirs = {f"model.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}
    network.load_state_dict(from_official(theirs), assign=True)


def test_bias_is_a_function_of_the_difference_of_indices() -> None:
    attend = Attend(2)
    torch.nn.init.normal_(attend.position[2].weight)
    queries, keys = (6, 4), (2, 8)
    bias = attend.bias(queries, keys).view(2, 6, 4, 2, 8)
    table = attend.table(queries, keys)
    for y, x, v, u in [(0, 0, 0, 0), (5, 0, 0, 7), (0, 3, 1, 0), (4, 2, 1, 5)]:
        torch.testing.assert_close(bias[:, y, x, v, u], table[:, y - v + 1, x - u + 7])
    middle = torch.sigmoid(attend.position(torch.zeros(2))) * 16  # no distance
    torch.testing.assert_close(bias[:, 3, 0, 0, 1], attend.table(queries, keys)[:, 4, 6])
    torch.testing.assert_close(attend.table((8, 8), (8, 8))[:, 7, 7], middle)


def test_a_grid_joins_what_it_split() -> None:
    grid = Grid((4, 6), (2, 3))
    x = torch.rand(2, 8, 12, 3, 5)
    assert torch.equal(grid.join(grid.split(x), 8, 12), x.flatten(3))


@pytest.mark.parametrize(
    ("size", "switches", "message"),
    [
        ("xl", {}, "unknown size 'xl' of GRL; there are t, s, b"),
        ("t", {"task": "colourize"}, "unknown task 'colourize' of GRL; there are denoise, sr"),
        ("t", {"scale": 2}, "a 'conv' head has scale 1, not 2"),
        ("t", {"head": "bilinear"}, "head must be one of conv, shuffle, staged, nearest"),
        ("t", {"heads": 3}, "3 heads do not divide half of 64 channels"),
        ("t", {"window": 24}, "window 24 and stripe"),
        ("t", {"anchor": 3}, "must be multiples of 6"),
    ],
)
def test_refuses_what_does_not_fit(size: str, switches: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRLConfig.from_preset(size, **switches)


@pytest.mark.parametrize("task", TASKS)
def test_configuration_survives_json(task: str) -> None:
    config = GRLConfig.from_preset("b", task=task)
    assert GRLConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_configuration_read_from_a_recipe_is_that_of_its_checkpoint() -> None:
    assert GRLConfig(width=32, depths=[4], stripe=[16, 32], window=8) == GRLConfig(  # type: ignore[arg-type]
        width=32, depths=(4,), stripe=(16, 32), window=8
    )
