"""The former place of :mod:`echoir.networks.upsampler`."""

from echoir.networks.upsampler import Combine, EchoUpsampler, block_tables, echo_upsample

__all__ = ["Combine", "EchoUpsampler", "block_tables", "echo_upsample"]
