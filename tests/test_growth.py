"""A larger network begins as the smaller one whose weights it takes, and what is new can learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echoir.growth import take_over
from echoir.networks.echoir import EchoIR, EchoIRConfig
from echoir.networks.grl import GRL
from echoir.runtime.errors import ArtifactError

SMALL = EchoIRConfig(width=8, blocks=(1, 1, 1), middle=1, refinement=0, expansion=2.66, stem=2)
IMAGE = torch.rand(1, 3, 48, 32, generator=torch.Generator().manual_seed(0))


def lively(config: EchoIRConfig) -> EchoIR:
    """A network none of whose weights is zero or one by the way it is drawn; the same every time."""
    torch.manual_seed(0)
    network = EchoIR(config)
    with torch.no_grad():
        for tensor in network.parameters():
            tensor += 0.1 * torch.randn_like(tensor)
    return network


@pytest.mark.parametrize("feed_forward", ["gdfn", "mlp"])
@settings(max_examples=8, deadline=None)
@given(more=st.tuples(*[st.integers(0, 2)] * 6), expansion=st.sampled_from([2.66, 2.75, 4.0]))
def test_a_grown_network_is_the_same_function(feed_forward: str, more: tuple[int, ...], expansion: float) -> None:
    small = lively(replace(SMALL, feed_forward=feed_forward))  # type: ignore[arg-type]
    large = EchoIR(
        replace(
            small.config,
            blocks=tuple(1 + count for count in more[:3]),
            middle=1 + more[3],
            refinement=more[4],
            residual_blocks=more[5],
            expansion=expansion,
        )
    )
    take_over(large, small)
    with torch.no_grad():
        torch.testing.assert_close(large(IMAGE), small(IMAGE), atol=2e-5, rtol=1e-4)


def test_what_is_new_learns_at_the_first_steps() -> None:
    torch.manual_seed(0)
    large = EchoIR(replace(SMALL, blocks=(2, 1, 2), residual_blocks=2, expansion=4.0))
    take_over(large, lively(SMALL))
    before = {name: tensor.clone() for name, tensor in large.state_dict().items()}
    descent = torch.optim.AdamW(large.parameters(), 1e-3, weight_decay=0)
    for _ in range(2):  # the last layers first, since they are zero
        descent.zero_grad()
        large(IMAGE).square().mean().backward()
        descent.step()
    still = {name for name, tensor in large.state_dict().items() if torch.equal(tensor, before[name])}
    assert not still
    assert not torch.equal(large.encoder1[0].feed_forward.out.weight[:, 21:], torch.zeros(8, 11)), "its new channels"


@pytest.mark.parametrize(
    "change", [{"width": 16}, {"blocks": (0, 1, 1)}, {"expansion": 2.0}, {"stem": 1}, {"channel_attention": False}]
)
def test_another_network_is_no_larger_one(change: dict[str, object]) -> None:
    large = EchoIR(replace(SMALL, **change))  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="another network, and not a larger one"):
        take_over(large, EchoIR(SMALL))


def test_another_architecture_is_no_start() -> None:
    with pytest.raises(ArtifactError, match="another network"):
        take_over(EchoIR(SMALL), GRL.from_preset("t", task="denoise"))
