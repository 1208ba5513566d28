"""Networks by name."""

from __future__ import annotations

import pytest
import torch

from echoir.networks import NAMES, make_network


@pytest.mark.parametrize("name", NAMES)
def test_every_name_makes_its_network(name: str) -> None:
    with torch.device("meta"):
        network = make_network(name)
    assert type(network).__name__.lower() == name.partition("-")[0]


def test_switches_reach_the_network() -> None:
    with torch.device("meta"):
        network = make_network("grl-s", task="sr", scale=2)
        assert network.config.scale == 2
        assert make_network("echoir-tiny", upsampler="transpose").config.upsampler == "transpose"


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown network 'unet'; there are echoir-base, .*grl-t"):
        make_network("unet")
