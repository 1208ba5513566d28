"""The parts that a report's page is made of: one file, nothing loaded from anywhere, light or dark as the reader's
system is, and for paper."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from echoir.export.proof.spread import PERCENTILES, Spread, in_codes
from echoir.runtime.vips import use_threads, vips

Pixels = NDArray[np.uint8]
WIDTH, HEIGHT = 640, 200  # of a chart


def document(title: str, sections: Iterable[str]) -> str:
    """The whole page as HTML text; empty sections are left out."""
    body = "\n".join(filter(None, sections))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def header(name: str, sentence: str, failures: Sequence[str]) -> str:
    """The verdict, what it is about, and why it is none better."""
    verdict = "failed" if failures else "passed"
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in failures)
    return f"""<header>
<p class="verdict {verdict}">Gate {verdict}</p>
<h1>{escape(name)}</h1>
<p class="lead">{escape(sentence)}</p>
{f'<ul class="reasons">{reasons}</ul>' if reasons else ""}
</header>"""


def cards(several: Iterable[tuple[str, str, str, str | None]]) -> str:
    """(title, value, note, gate) each."""
    return '<section class="cards">' + "".join(_card(*card) for card in several) + "</section>"


def _card(title: str, value: str, note: str, gate: str | None) -> str:
    asked = f'<p class="gate">{escape(gate)}</p>' if gate else ""
    return f'<div class="card"><h2>{escape(title)}</h2><p class="value">{value}</p><p>{escape(note)}</p>{asked}</div>'


def exhibit(title: str, note: str, difference: NDArray[np.float32], pictures: Sequence[tuple[Pixels, str]]) -> str:
    """Pictures side by side under their captions, and last what the engine's differs by from PyTorch's."""
    factor = amplification(difference)
    shown = np.rint(np.clip(0.5 + factor * difference, 0, 1) * 255).astype(np.uint8)
    caption = f"difference \u00d7 {factor:,}" if difference.any() else "no difference"
    figures = "\n".join(figure(*picture) for picture in [*pictures, (shown, caption)])
    return f"""<div class="exhibit">
<h3>{escape(title)} <small>{escape(note)}</small></h3>
<div class="row{"" if len(pictures) < 4 else " threes"}">
{figures}
</div>
</div>"""


DIFFERENCE = (
    "In the difference, mid-grey is equality; brighter means that the engine's value is higher. It is multiplied by "
    "the power of two that brings all but its largest 0.5 % to about a quarter of the range, so that there is "
    "something to see: × 64 shows an error of one 8-bit code as 64 codes."  # noqa: RUF001
)


def amplification(difference: NDArray[np.float32]) -> int:
    """The power of two that brings the 99.5th percentile of a difference to about a quarter of the range."""
    spread = float(np.quantile(np.abs(difference), 0.995))
    return 1 if spread == 0 else 2 ** min(max(round(math.log2(0.25 / spread)), 0), 20)


def figure(pixels: Pixels, caption: str) -> str:
    """A picture [H, W, 3] and what it is."""
    height, width, _ = pixels.shape
    return (
        f'<figure><img src="{_data_uri(pixels)}" width="{width}" height="{height}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _data_uri(pixels: Pixels) -> str:
    use_threads()
    image = vips().Image.new_from_memory(np.ascontiguousarray(pixels), *pixels.shape[1::-1], 3, "uchar")
    return "data:image/webp;base64," + base64.b64encode(image.webpsave_buffer(Q=90)).decode()


def table(head: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] | None = None) -> str:
    """Cells are HTML. On a narrow screen every row is a list of its own, each cell beside its column's name."""

    def row(cells: Sequence[str]) -> str:
        named = zip(head, cells, strict=True)
        return "<tr>" + "".join(f'<td data-label="{escape(name)}">{cell}</td>' for name, cell in named) + "</tr>"

    body = "\n".join(row(cells) for cells in rows)
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    foot = "" if total is None else f"<tfoot>{row(total)}</tfoot>"
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>{foot}</table></div>'


def facts(title: str, entries: Iterable[tuple[str, str]]) -> str:
    """Names and values."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in entries)
    return f"<section>\n<h2>{escape(title)}</h2>\n<dl>{rows}</dl>\n</section>"


def chart(caption: str, parts: Iterable[str], height: int = HEIGHT) -> str:
    """An SVG of ``WIDTH`` by ``height``."""
    drawn = "".join(parts)
    return (
        f'<figure class="chart"><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(caption)}">{drawn}'
        f"</svg><figcaption>{escape(caption)}</figcaption></figure>"
    )


def errors(spread: Spread) -> str:
    """The section about single values: a histogram, percentiles, the largest."""
    octaves = spread.octaves
    total = sum(spread.counts)
    words = ", ".join(f"{percent:g} % within {in_codes(spread.percentile(percent))}" for percent in PERCENTILES)
    picture = _histogram(octaves, total) if octaves else ""
    return f"""<section>
<h2>Errors of single values</h2>
<p>Engine minus PyTorch before clipping, in 8-bit codes (1/255 of the range): {words}, the largest
{in_codes(spread.largest)}.</p>
{picture}
</section>"""


def _histogram(octaves: dict[int, int], total: int) -> str:
    """Share of values by the magnitude of their error, an octave each."""
    # What is rarer than one in a thousand, down to rounding itself, is one bar with the smallest that is not.
    last = max(octaves)
    first = next(power for power in sorted(octaves) if _up_to(octaves, power) > total / 1000)
    octaves = {**octaves, first: _up_to(octaves, first)}
    left, bottom, top = 48, 38, 14
    step = (WIDTH - left - 12) / max(last - first + 1, 6)
    highest = max(octaves[power] for power in octaves if power >= first) / total
    floor = HEIGHT - bottom
    parts = [f'<line class="axis" x1="{left}" y1="{floor}" x2="{WIDTH - 12}" y2="{floor}"/>']
    for share in (0.5, 1.0):
        y = floor - share * (floor - top)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{WIDTH - 12}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * share * highest:.0f} %</text>')
    for power in range(first, last + 1):
        x = left + (power - first) * step
        height = octaves.get(power, 0) / total / highest * (floor - top)
        parts.append(
            f'<rect class="bar" x="{x + 1:.1f}" y="{floor - height:.1f}" width="{step - 2:.1f}" height="{height:.1f}"/>'
        )
        if (power - first) % max(1, math.ceil(44 / step)) == 0:
            parts.append(
                f'<text x="{x:.1f}" y="{floor + 17}" text-anchor="middle">{in_codes(2.0**power)}</text>'
                f'<line class="axis" x1="{x:.1f}" y1="{floor}" x2="{x:.1f}" y2="{floor + 4}"/>'
            )
    parts.append(f'<text x="{WIDTH - 12}" y="{HEIGHT - 3}" text-anchor="end">codes</text>')
    caption = (
        "Share of values by the size of their error; each bar reaches twice as far as the one before, the first from 0"
    )
    return chart(caption, parts)


def _up_to(octaves: dict[int, int], power: int) -> int:
    return sum(count for other, count in octaves.items() if other <= power)


def db(value: float) -> str:
    """Decibels for a table."""
    if math.isnan(value):
        return "none"
    return "identical" if math.isinf(value) else f"{value:.2f}\u00a0dB"


STYLE = """
:root { --paper: #fbfbfa; --ink: #1d1f21; --soft: #5c6166; --line: #e2e3e1; --card: #fff; --good: #1a7f4b;
  --bad: #b3261e; --bar: #4a78b5; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #15171a; --ink: #e8e8e6; --soft: #a2a8ae;
  --line: #2d3136; --card: #1c1f23; --good: #5fce96; --bad: #ff8a80; --bar: #7fa8dc; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 6px 0 8px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 6px; }
h3 { font-size: 15px; margin: 26px 0 8px; }
h3 small { color: var(--soft); font-weight: 400; margin-left: 6px; }
p { margin: 0 0 10px; max-width: 76ch; }
section > p, .lead { color: var(--soft); }
.lead { font-size: 16px; }
.verdict { display: inline-block; margin: 0; padding: 2px 12px; border: 1.5px solid currentColor; border-radius: 99px;
  font-weight: 600; font-size: 13px; }
.passed { color: var(--good); }
.failed, .reasons { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(195px, 1fr)); gap: 12px; margin-top: 26px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.card h2 { font-size: 13px; font-weight: 500; margin: 0; color: var(--soft); }
.card p { margin: 0; font-size: 12.5px; color: var(--soft); }
.card .value { font-size: 24px; font-weight: 600; color: var(--ink); margin: 2px 0;
  font-variant-numeric: tabular-nums; }
.card .gate { margin-top: 6px; font-weight: 600; }
.row { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; }
.threes { grid-template-columns: repeat(3, 1fr); }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; border-radius: 6px; }
figcaption { color: var(--soft); font-size: 13px; margin-top: 5px; font-variant-numeric: tabular-nums; }
.double { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 18px; }
.chart { max-width: 720px; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--soft); }
.axis { stroke: var(--soft); } .grid { stroke: var(--line); }
.bar { fill: var(--bar); } .chosen { fill: var(--good); } .hollow { fill: none; stroke: var(--bad); }
.tried { fill: none; stroke: var(--soft); } .budget { stroke: var(--bad); stroke-dasharray: 5 4; }
summary { cursor: pointer; margin-top: 14px; }
.scroll { overflow-x: auto; margin-top: 12px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: 7px 12px 7px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 110px; }
tfoot td { font-weight: 600; border-bottom: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 22px; font-size: 13.5px; margin: 12px 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media screen and (max-width: 760px) {
  main { padding: 24px 16px 48px; }
  .row { grid-template-columns: 1fr 1fr; }
  svg text { font-size: 17px; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; }
  table, tbody, tfoot, tr, td { display: block; } thead { display: none; }
  tr { border-bottom: 1px solid var(--line); padding: 8px 0; }
  td { display: flex; justify-content: space-between; gap: 16px; border: 0; padding: 1px 0; white-space: normal; }
  td::before { content: attr(data-label); color: var(--soft); font-weight: 400; text-align: left; }
  td:first-child { font-weight: 600; } td:first-child::before { content: none; }
}
@media print {
  :root { --paper: #fff; --soft: #444; --line: #bbb; }
  @page { margin: 14mm; }
  body { font-size: 9.5pt; } main { max-width: none; padding: 0; } h2 { margin-top: 20pt; }
  .scroll { overflow: visible; } table { font-size: 7pt; } th, td { padding: 2pt 5pt 2pt 0; white-space: normal; }
  .card, .exhibit, figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
  summary { display: none; } details::details-content { content-visibility: visible; }
}
"""
