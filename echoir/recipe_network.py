"""The network that a recipe names: one of the table, or one's own."""

from __future__ import annotations

import click
from torch import nn

from echoir.named import find, is_own
from echoir.networks.echoir import PRESETS
from echoir.networks.grl import GRL
from echoir.networks.grl import TASKS as GRL_TASKS
from echoir.networks.table import NAMES, make_network
from echoir.recipe import Recipe


def network_of(recipe: Recipe) -> nn.Module:
    """The network, on the CPU, with weights that ``torch``'s seed draws.

    Raises:
        click.BadParameter: there is none of that name, it cannot be made as the recipe says, or pictures in RGB are
            not what it takes.
    """
    if is_own(recipe.preset):
        try:
            network = find(recipe.preset, "preset")(**recipe.network)
        except TypeError as error:  # not to be called, or not with these keywords
            raise click.BadParameter(f"preset: {recipe.preset!r} with network = {recipe.network}: {error}") from None
        if not isinstance(network, nn.Module):
            found = type(network).__name__
            raise click.BadParameter(f"preset: {recipe.preset!r} gave {found}, needed a torch.nn.Module")
        return network
    name = f"echoir-{recipe.preset}" if recipe.preset in PRESETS else recipe.preset
    if name not in NAMES:
        names = ", ".join([*PRESETS, *(name for name in NAMES if name.startswith("grl-"))])
        raise click.BadParameter(f"preset: unknown preset {recipe.preset!r}; there are {names}, or module:attribute")
    switches = recipe.network
    if name.startswith("grl-") and recipe.task in GRL_TASKS:  # its windows depend on the task
        switches = {"task": recipe.task} | switches
    try:
        made = make_network(name, **switches)
    except (ValueError, TypeError) as error:  # an unknown switch, or an unknown value of one
        raise click.BadParameter(f"the recipe's network: {error}") from None
    if isinstance(made, GRL) and (made.config.inputs, made.config.outputs) != (3, 3):
        planes = made.config.inputs, made.config.outputs
        raise click.BadParameter(f"the recipe's network: found {planes} planes in and out, needed (3, 3), RGB")
    return made
