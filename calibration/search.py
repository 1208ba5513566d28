"""The most INT8 that stays within a budget in dB: spend it where a dB buys the most multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from echoir.calibration.graph import Layer
from echoir.calibration.sensitivity import Drop, Group

# Of the budget: the tiles stand for the average picture, and some suffer twice as much.
SPENT = 0.5
FILLS = 4  # combinations beyond the longest prefix that are tried


class Measure(Protocol):
    """Gives what layers in INT8 cost."""

    def drop(self, layers: Sequence[Layer]) -> Drop: ...


@dataclass(frozen=True)
class Cost:
    """What one group costs by itself.

    Attributes:
        share: of all multiply-accumulates.
        drop, worst: see :class:`echoir.calibration.sensitivity.Drop`.
        int8: whether the search chose it.
    """

    group: Group
    share: float
    drop: float
    worst: float
    int8: bool = False


@dataclass(frozen=True)
class Choice:
    """The outcome.

    Attributes:
        costs: of every group, cheapest per multiply-accumulate first.
        share: of multiply-accumulates in INT8.
        drop, worst: of the whole choice, in dB.
        curve: (share, drop) of every combination that was measured, by share.
        budget: in dB, as asked.
    """

    costs: tuple[Cost, ...]
    share: float
    drop: float
    worst: float
    curve: tuple[tuple[float, float], ...]
    budget: float

    @property
    def layers(self) -> list[Layer]:
        """Those in INT8."""
        return [layer for cost in self.costs if cost.int8 for layer in cost.group.layers]

    @property
    def kept(self) -> list[Cost]:
        """Groups that stay in a higher precision, dearest first."""
        return [cost for cost in reversed(self.costs) if not cost.int8]


def search(
    groups: Sequence[Group],
    macs: int,
    measure: Measure,
    budget: float,
    *,
    on_group: Callable[[str], None] | None = None,
) -> Choice:
    """Measure every group alone, then take the cheapest together as far as the budget allows.

    Drops of single groups nearly add up, so their order by drop per multiply-accumulate is the order
    to take them in; how far is found by measuring combinations (a bisection over the prefixes of that
    order, then one group more at a time that may still fit).

    Args:
        groups: that can be quantized.
        macs: of the whole network.
        measure: see :class:`Measure`.
        budget: the largest drop in dB; ``SPENT`` of it is used.
        on_group: told the name of each group measured.
    """
    costs = []
    for group in groups:
        costs.append(Cost(group, group.macs / macs, *measure.drop(group.layers)))
        if on_group is not None:
            on_group(group.name)
    costs.sort(key=lambda cost: cost.drop / cost.share)
    limit = SPENT * budget
    tried = {frozenset[int](): Drop(0.0, 0.0)}

    def fits(chosen: frozenset[int]) -> bool:
        if chosen not in tried:
            tried[chosen] = measure.drop([layer for index in sorted(chosen) for layer in costs[index].group.layers])
        return tried[chosen].mean <= limit

    low, high = 0, len(costs)  # the longest prefix that fits is in between
    while low < high:
        middle = high if high == len(costs) and low == 0 else (low + high + 1) // 2
        if fits(frozenset(range(middle))):
            low = middle
        else:
            high = middle - 1
    chosen = frozenset(range(low))
    rest = sorted(range(low, len(costs)), key=lambda index: -costs[index].share)
    affordable = [index for index in rest if tried[chosen].mean + costs[index].drop <= limit]
    for index in affordable[:FILLS]:
        if fits(chosen | {index}):
            chosen |= {index}

    def share(indices: frozenset[int]) -> float:
        return sum(costs[index].share for index in indices)

    drop, worst = tried[chosen]
    return Choice(
        tuple(Cost(cost.group, cost.share, cost.drop, cost.worst, index in chosen) for index, cost in enumerate(costs)),
        share(chosen),
        drop,
        worst,
        tuple(sorted((share(indices), found.mean) for indices, found in tried.items())),
        budget,
    )
