"""The part of ``report.html`` that shows what INT8 costs, group by group."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from echoir.export.proof import page
from echoir.export.proof.page import WIDTH

HEIGHT, LEFT, BOTTOM, TOP = 260, 64, 44, 14
HEAD = ["layers, alone in INT8", "share of MACs", "drop, dB", "worst tile, dB", "dB per % of MACs", "chosen"]
BARS = 14  # groups that the chart shows, dearest first


def section(search: dict[str, Any]) -> str:
    """The section as HTML.

    Args:
        search: as :attr:`echoir.export.quantized.Int8.sensitivity` gives it.
    """
    groups = sorted(search["groups"], key=lambda group: -group["drop"])
    kept = [group for group in groups if not group["int8"]]
    names = ", ".join(escape(group["name"]) for group in kept) or "nothing"
    return f"""<section>
<h2>INT8</h2>
<p>{100 * search["share"]:.1f} % of multiply-accumulates in INT8, for {search["drop"]:.4f} dB on
{len(search["sensitivity_tiles"])} tiles that neither set the ranges nor take part in the figures above (worst tile
{search["worst_tile_drop"]:.4f} dB); the budget was {search["budget"]:g} dB. Kept higher: {names}.</p>
<div class="double">
{_bars(groups[:BARS])}
{_curve(search)}
</div>
<details>
<summary>All {len(groups)} groups of layers, each alone in INT8</summary>
{page.table(HEAD, map(_cells, groups))}
</details>
</section>"""


def _cells(group: dict[str, Any]) -> list[str]:
    share = 100 * group["share"]
    return [
        escape(group["name"]),
        f"{share:.2f} %",
        f"{group['drop']:+.4f}",
        f"{group['worst_tile_drop']:+.4f}",
        f"{group['drop'] / share:+.5f}",
        "INT8" if group["int8"] else "<b>kept higher</b>",
    ]


def _bars(groups: list[dict[str, Any]]) -> str:
    """The dearest groups; hollow bars stayed out of INT8."""
    largest = max([group["drop"] for group in groups] + [1e-6])
    step = (HEIGHT - TOP) / max(len(groups), 1)
    parts = []
    for index, group in enumerate(groups):
        y = TOP + index * step
        length = max(group["drop"], 0) / largest * 300
        look = "bar" if group["int8"] else "bar hollow"
        parts.append(
            f'<text x="228" y="{y + step * 0.62:.1f}" text-anchor="end">{escape(group["name"])}</text>'
            f'<rect class="{look}" x="236" y="{y + step * 0.15:.1f}" width="{length:.1f}" height="{step * 0.6:.1f}"/>'
            f'<text x="{242 + length:.1f}" y="{y + step * 0.62:.1f}">{group["drop"]:.4f} dB</text>'
        )
    return page.chart("What each group costs alone; hollow: kept higher", parts, HEIGHT)


def _ticks(top: float) -> list[float]:
    """Round values from 0 up, some four of them below ``top``."""
    unit = 10 ** math.floor(math.log10(top / 4))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= top / 5)
    return [step * index for index in range(int(top / step) + 1)]


def _curve(search: dict[str, Any]) -> str:
    """Every combination that was measured: share of MACs against drop."""
    points = search["curve"]
    top = 1.1 * max([search["budget"], *(drop for _, drop in points)])

    def place(share: float, drop: float) -> tuple[float, float]:
        return LEFT + share * (WIDTH - LEFT - 28), HEIGHT - BOTTOM - max(drop, 0) / top * (HEIGHT - BOTTOM - TOP)

    _, budget = place(0, search["budget"])
    left, floor = place(0, 0)
    right, _ = place(1, 0)
    parts = [
        f'<line class="axis" x1="{left}" y1="{floor}" x2="{right}" y2="{floor}"/>',
        f'<text x="{left + 4}" y="{budget - 5:.1f}">budget {search["budget"]:g} dB</text>',
        f'<line class="axis" x1="{left}" y1="{floor}" x2="{left}" y2="{TOP}"/>',
        f'<text x="{right}" y="{HEIGHT - 6}" text-anchor="end">of multiply-accumulates in INT8</text>',
    ]
    for drop in _ticks(top):
        _, y = place(0, drop)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{drop:g}</text>')
    parts.append(f'<text x="{left - 6}" y="{TOP - 2}" text-anchor="end">dB</text>')
    parts.append(f'<line class="budget" x1="{left}" y1="{budget:.1f}" x2="{right}" y2="{budget:.1f}"/>')
    parts += [
        f'<text x="{place(share, 0)[0]:.1f}" y="{HEIGHT - 24}" text-anchor="middle">{100 * share:.0f} %</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    for share, drop in points:
        x, y = place(share, drop)
        chosen = abs(share - search["share"]) < 1e-9
        parts.append(f'<circle class="{"chosen" if chosen else "tried"}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        if chosen:
            parts.append(f'<text x="{x - 8:.1f}" y="{y - 8:.1f}" text-anchor="end">{drop:.4f} dB</text>')
    caption = "Combinations that were measured: drop in dB over the share of multiply-accumulates in INT8"
    return page.chart(caption, parts, HEIGHT)
