"""The part of ``report.html`` that shows what INT8 costs, group by group."""

from __future__ import annotations

from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 260, 56, 36, 12
BARS = 14  # groups that the chart shows, dearest first


def section(search: dict[str, Any]) -> str:
    """The section as HTML.

    Args:
        search: as :attr:`echoir.export.quantized.Int8.sensitivity` gives it.
    """
    groups = sorted(search["groups"], key=lambda group: -group["drop"])
    kept = [group for group in groups if not group["int8"]]
    names = ", ".join(escape(group["name"]) for group in kept) or "nothing"
    rows = "\n".join(_row(group) for group in groups)
    return f"""<section>
<h2>INT8</h2>
<p>{100 * search["share"]:.1f} % of multiply-accumulates in INT8, for {search["drop"]:.4f} dB on
{len(search["sensitivity_tiles"])} tiles that neither set the ranges nor take part in the figures above (worst tile
{search["worst_tile_drop"]:.4f} dB); the budget was {search["budget"]:g} dB. Kept higher: {names}.</p>
<div class="double">
{_bars(groups[:BARS])}
{_curve(search)}
</div>
<div class="scroll"><table><thead><tr><th>layers, alone in INT8</th><th>share of MACs</th><th>drop</th>
<th>worst tile</th><th>dB per % of MACs</th><th></th></tr></thead>
<tbody>
{rows}
</tbody></table></div>
</section>"""


def _row(group: dict[str, Any]) -> str:
    share = 100 * group["share"]
    cells = [
        escape(group["name"]),
        f"{share:.2f} %",
        f"{group['drop']:+.4f}",
        f"{group['worst_tile_drop']:+.4f}",
        f"{group['drop'] / share:+.5f}",
        "INT8" if group["int8"] else "<b>kept higher</b>",
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


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
    return _svg("What each group costs alone; hollow: kept higher", parts)


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
        f'<line class="budget" x1="{left}" y1="{budget:.1f}" x2="{right}" y2="{budget:.1f}"/>',
        f'<text x="{left}" y="{budget - 5:.1f}">budget {search["budget"]:g} dB</text>',
    ]
    parts += [
        f'<text x="{place(share, 0)[0]:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{100 * share:.0f} %</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    for share, drop in points:
        x, y = place(share, drop)
        chosen = abs(share - search["share"]) < 1e-9
        parts.append(f'<circle class="{"chosen" if chosen else "tried"}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        if chosen:
            parts.append(f'<text x="{x - 8:.1f}" y="{y - 8:.1f}" text-anchor="end">{drop:.4f} dB</text>')
    return _svg("Combinations that were measured: drop over the share of multiply-accumulates in INT8", parts)


def _svg(caption: str, parts: list[str]) -> str:
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(caption)}">{"".join(parts)}</svg>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


STYLE = """
.double { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 18px; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--soft); }
.bar, .chosen { fill: var(--good); } .hollow { fill: none; stroke: var(--bad); }
.tried { fill: none; stroke: var(--soft); } .axis { stroke: var(--line); }
.budget { stroke: var(--bad); stroke-dasharray: 5 4; }
"""
