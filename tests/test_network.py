"""The network against the paper's parameter counts, and its behaviour at odd sizes."""

from __future__ import annotations

import pytest
import torch
from builders import small_network

from echoir.networks.echoir import PRESETS, EchoIR, EchoIRConfig, MixAttentionBlock, pad_to_multiple


def millions(**switches: object) -> float:
    with torch.device("meta"):
        return sum(p.numel() for p in EchoIR.from_preset("base", **switches).parameters()) / 1e6


@pytest.mark.parametrize(
    ("switches", "paper"),
    [
        ({}, 30.26),  # Table 5, CA + GDFN
        ({"channel_attention": False}, 22.98),  # Table 5, GDFN alone
        ({"upsampler": "pixelshuffle"}, 33.43),  # Table 4, PS
        ({"upsampler": "pixelshuffle", "channel_attention": False}, 26.13),  # Restormer itself
        ({"upsampler": "transpose"}, 30.25),  # Table 4, TC
    ],
)
def test_parameters_match_the_paper_within_three_per_mille(switches: dict[str, object], paper: float) -> None:
    assert millions(**switches) == pytest.approx(paper, rel=3e-3)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 8), (17, 3)])
@pytest.mark.parametrize("upsampler", ["echo", "pixelshuffle", "transpose"])
def test_any_input_size_comes_back_in_that_size(size: tuple[int, int], upsampler: str) -> None:
    network = small_network(upsampler=upsampler)
    assert network(torch.rand(2, 3, *size)).shape == (2, 3, *size)


def test_padding_inside_equals_padding_by_hand() -> None:
    torch.manual_seed(0)
    network = small_network().eval()
    image = torch.rand(1, 3, 20, 27)
    by_hand = torch.nn.functional.pad(image, (0, 5, 0, 4), mode="reflect")
    with torch.no_grad():
        torch.testing.assert_close(network(image), network(by_hand)[..., :20, :27])


def test_reflection_bounces_as_often_as_needed() -> None:
    row = torch.arange(3.0).reshape(1, 1, 1, 3)
    assert pad_to_multiple(row, 8)[0, 0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]


@pytest.mark.parametrize(
    "switches", [{"reference": "image"}, {"feed_forward": "mlp"}, {"channel_attention": False}, {"radius": 2}]
)
def test_ablations_run_and_learn(switches: dict[str, object]) -> None:
    network = small_network(**switches)
    network(torch.rand(1, 3, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "switches", "message"),
    [
        ("huge", {}, "unknown preset 'huge'; there are base, small, tiny"),
        ("tiny", {"radius": 4}, "radius must be an integer from 0 to 3, got 4"),
        ("tiny", {"residual_blocks": -1}, "residual_blocks must be an integer from 0 up, got -1"),
        ("tiny", {"blocks": (1, 2, 0.5)}, "each of blocks must be an integer from 0 up, got 0.5"),
        ("tiny", {"radius": 1.0}, "radius must be an integer from 0 to 3, got 1.0"),
        ("tiny", {"upsampler": "bilinear"}, "upsampler must be one of echo, pixelshuffle, transpose"),
        ("tiny", {"heads": (3, 2, 4, 8)}, "3 heads do not divide the 32 channels of level 1"),
    ],
)
def test_refuses_unknown_names(name: str, switches: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EchoIR.from_preset(name, **switches)


def test_every_upsampler_has_the_configured_radius() -> None:
    network = small_network(radius=2)
    assert [network.up1.radius, network.up2.radius, network.up3.radius] == [2, 2, 2]
    assert network.state_dict().keys() == small_network().state_dict().keys(), "Ω has no weights"


@pytest.mark.parametrize("preset", PRESETS)
def test_configuration_survives_json(preset: str) -> None:
    import json

    config = PRESETS[preset]
    assert EchoIRConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_losslessness_is_zero_where_upsampling_undoes_downsampling() -> None:
    network = small_network()
    features = network.encode(torch.rand(1, 3, 16, 16))
    assert network.losslessness(torch.rand(1, 3, 16, 16), *features) > 0
    silent = tuple(
        torch.zeros_like(feature) for feature in features
    )  # nothing comes back as nothing: no layer has a bias
    assert network.losslessness(torch.rand(1, 3, 16, 16), *silent) == 0


def test_a_residual_block_is_two_dense_convolutions_of_the_first_level() -> None:
    def parameters(count: int) -> int:
        network = EchoIR.from_preset("tiny", residual_blocks=count)
        return sum(tensor.numel() for tensor in network.parameters())

    assert parameters(2) - parameters(0) == 2 * 2 * 9 * 64**2, "3 x 3, of 64 channels, twice"


def test_every_hidden_channel_of_tiny_suits_tensor_cores() -> None:
    network = EchoIR.from_preset("tiny")
    hidden = {block.feed_forward.out.in_channels for block in network.modules() if isinstance(block, MixAttentionBlock)}
    assert hidden == {88, 176, 352, 704}
    assert all(count % 8 == 0 for count in hidden)
