"""The report: one self-contained page that says what was measured, whatever the names and figures are."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from builders import make_manifest
from PIL import Image

from echoir.export.proof import page
from echoir.export.proof.figures import AgainstTruth, AgainstWhole, ImageFigures, SetFigures, SquaredError, WorstTile
from echoir.export.proof.page import amplification
from echoir.export.proof.report import render
from echoir.export.proof.results import Exhibit, Gate, ParityReport
from echoir.export.proof.spread import Spread, in_codes
from echoir.export.proof.summary import lines, table

PSNR = 60.0


def make_report(name: str = "a.png", error: float = PSNR, gate: Gate | None = None, **changes: Any) -> ParityReport:
    squared = SquaredError(0.0 if math.isinf(error) else 3000 * 10 ** (-error / 10), 3000)
    truth = AgainstTruth(20.5, 31.25, 31.2375, 0.9, 0.8999)
    whole = AgainstWhole(squared, squared, squared, SquaredError(), 31.25, 31.30)
    figures = ImageFigures(
        name, 25, 40, squared, 1, (0.5, -0.25, 0.0), WorstTile(name, 0, 8, 25, 32, squared), truth, whole
    )
    rng = np.random.default_rng(0)
    before, pytorch, after = (rng.integers(0, 256, (25, 40, 3), np.uint8) for _ in range(3))
    difference = np.zeros((25, 40, 3), np.float32)
    if not math.isinf(error):
        difference[10:15, 20:30] = 1 / 256
    fields: dict[str, Any] = {
        "manifest": make_manifest(),
        "conditions": {
            "degradation": {"kind": "gaussian noise", "sigma": 25.0, "seed": 0, "pictures": 1},
            "tile": {"height": 32, "width": 32, "overlap": 8},
            "io": "float32",
            "versions": {"echoir": "0"},
        },
        "figures": SetFigures((figures,)),
        "rejected": (),
        "gate": gate or Gate(55.0, 0.02),
        "exhibits": (Exhibit(figures, (slice(0, 25), slice(0, 40)), before, pytorch, after, difference),),
    }
    return ParityReport(**(fields | changes))


class Page(HTMLParser):
    """Text, links to anything outside, images, and whether every element is closed."""

    VOID = frozenset({"meta", "img", "link", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text, self.outside = "", []
        self.images: list[np.ndarray[Any, Any]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key in ("src", "href", "srcset") and not (value or "").startswith("data:"):
                self.outside.append(value)
            elif key == "src":
                data = base64.b64decode((value or "").split(",")[1])
                self.images.append(np.asarray(Image.open(io.BytesIO(data))))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_well_formed_and_loads_nothing() -> None:
    html = render(make_report())
    page = Page(html)
    assert page.open == []
    assert page.outside == []
    assert "<script" not in html
    assert not re.search(r"url\(|@import|https?://", html)


def test_page_shows_the_figures_and_the_verdict() -> None:
    text = Page(render(make_report())).text.replace("\u00a0", " ")
    for expected in ("Gate passed", "60.00 dB", "gate ≥ 55 dB", "-0.0125 dB", "31.24 dB", "+0.500, -0.250, +0.000"):
        assert expected in text
    failed = Page(render(make_report(gate=Gate(70.0, 0.01)))).text
    assert "Gate failed" in failed
    assert "the gate is 70 dB" in failed
    assert "the gate is 0.01 dB" in failed


def test_difference_is_amplified_by_the_factor_it_states() -> None:
    page = Page(render(make_report()))
    assert "difference \u00d7 64" in page.text
    before, pytorch, after, difference = page.images
    assert before.shape == pytorch.shape == after.shape == difference.shape == (25, 40, 3)
    assert difference[:8].mean() == pytest.approx(127.5, abs=1)
    assert difference[11:14, 22:28].mean() == pytest.approx(255 * (0.5 + 64 / 256), abs=4)  # lossy picture


@pytest.mark.parametrize("spread", [1e-6, 1e-3, 0.2])
def test_amplification_brings_a_difference_near_a_quarter_of_the_range(spread: float) -> None:
    factor = amplification(np.full((8, 8, 3), spread, np.float32))
    assert factor & (factor - 1) == 0  # a power of two
    assert 0.25 / 2**0.5 <= factor * spread <= 0.25 * 2**0.5


def test_amplification_never_shrinks_a_difference() -> None:
    assert amplification(np.full((8, 8, 3), 3, np.float32)) == 1


def test_equal_images_are_called_identical() -> None:
    report = make_report(error=math.inf)
    text = Page(render(report)).text
    assert "identical" in text
    assert "no difference" in text
    assert (
        json.loads(json.dumps(report.to_json(), allow_nan=False))["figures"]["engine_against_pytorch"]["psnr"] is None
    )


@pytest.mark.parametrize(
    ("degradation", "words"),
    [
        ({"kind": "gaussian noise", "sigma": 25.0, "seed": 0}, "2 pictures, Gaussian noise of sigma 25, seed 0"),
        ({"kind": "synthetic derain", "seed": 3}, "2 pictures, Synthetic derain, seed 3"),
        ({"kind": "pairs"}, "2 pictures with their targets"),
    ],
)
def test_page_and_summary_say_what_was_done_to_the_pictures(degradation: dict[str, Any], words: str) -> None:
    conditions = {**make_report().conditions, "degradation": {**degradation, "pictures": 2}}
    report = make_report(conditions=conditions)
    assert words in Page(render(report)).text
    assert words in "\n".join(lines(report))


def test_names_cannot_inject_markup() -> None:
    html = render(make_report("<script>alert(1)</script>.png"))
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_a_report_without_any_figures_still_says_why() -> None:
    report = make_report(figures=None, exhibits=(), rejected=(("a.png", "NaN & more"),))
    page = Page(render(report))
    assert page.open == []
    assert "Gate failed" in page.text
    assert "a.png: NaN & more" in page.text
    assert any("NaN & more" in line for line in lines(report))


def test_text_summary_has_one_row_per_picture_and_the_verdict() -> None:
    text = lines(make_report())
    (row,) = [line for line in text if line.startswith("a.png")]
    assert row.split() == ["a.png", "60.00", "1", "20.50", "31.25", "31.24", "-0.0125", "0.8999"]
    assert any(line.startswith("gate passed: at least 55 dB") for line in text)


def test_table_aligns_its_columns() -> None:
    assert table(["a", "bb"], [["long", "1"], ["x", "222"]]) == ["a      bb", "----  ---", "long    1", "x     222"]


def test_page_shows_pytorch_beside_the_engine_and_says_what_the_amplification_is() -> None:
    text = Page(render(make_report())).text.replace("\u00a0", " ")
    captions = ("before, 20.50 dB", "PyTorch, 31.25 dB", "engine, 31.24 dB")
    assert all(caption in text for caption in captions)
    assert "shows an error of one 8-bit code as 64 codes" in text


def test_a_table_names_the_column_in_every_cell_for_narrow_screens() -> None:
    html = page.table(["a", "b & c"], [["1", "2"]], ["3", "4"])
    assert re.findall(r'<td data-label="([^"]*)">(\d)', html) == [
        ("a", "1"),
        ("b &amp; c", "2"),
        ("a", "3"),
        ("b &amp; c", "4"),
    ]


@pytest.mark.parametrize("scale", [1e-7, 1e-4, 0.3])
def test_percentiles_are_those_of_a_sort_to_a_quarter_of_an_octave(scale: float) -> None:
    error = scale * np.abs(np.random.default_rng(0).standard_normal(50_000))
    parts = [Spread.between(part, np.zeros_like(part)) for part in np.split(error, 5)]
    spread = sum(parts, Spread())
    assert spread.largest == error.max()
    assert sum(spread.counts) == error.size
    for percent in (50.0, 90.0, 99.0, 99.9):
        exact = np.percentile(error, percent, method="higher")
        assert exact * 0.999 <= spread.percentile(percent) <= exact * 2**0.25 * 1.001
    for power, count in spread.octaves.items():
        assert count == np.sum((error >= 2.0**power) & (error < 2.0 ** (power + 1)))


def test_no_error_at_all_is_a_spread_of_zeros() -> None:
    spread = Spread.between(np.ones((2, 2)), np.ones((2, 2)))
    assert spread.to_json() == {"largest": 0, "p50": 0, "p90": 0, "p99": 0, "p99.9": 0}
    assert spread.octaves == {}
    assert in_codes(0.0) == "0"
    assert (in_codes(1 / 255), in_codes(0.5), in_codes(0.00034)) == ("1.0", "128", "0.087")


def test_a_page_with_errors_has_a_histogram() -> None:
    (image,) = make_report().figures.images  # type: ignore[union-attr]
    spread = Spread.between(np.random.default_rng(0).normal(0, 1e-3, (20, 20)), np.zeros((20, 20)))
    text = Page(render(make_report(figures=SetFigures((replace(image, spread=spread),))))).text
    assert "each bar reaches twice as far" in text
    assert f"the largest\n{in_codes(spread.largest)}" in text


def test_page_says_where_when_and_with_what() -> None:
    conditions = {
        **make_report().conditions,
        "date": "2026-01-02T03:04:05+00:00",
        "command": "echoir parity -m a&b",
        "host": "orin",
        "session": {"onnxruntime": "1.2.3", "provider": "CPUExecutionProvider"},
        "machine": {"cpu": "Cortex"},
        "pictures_sha256": "ab12",
    }
    text = Page(render(make_report(conditions=conditions))).text
    for said in ("2026-01-02", "echoir parity -m a&b", "orin", "onnxruntime 1.2.3", "CPUExecutionProvider", "ab12"):
        assert said in text


def test_several_forms_have_a_table_of_their_own() -> None:
    (image,) = make_report().figures.images  # type: ignore[union-attr]
    images = replace(image, label="rgb sigma 25"), replace(image, label="clean", clean=True)
    report = make_report(figures=SetFigures(images))
    text = Page(render(report)).text
    assert "Forms in which pictures come" in text
    assert set(report.to_json()["figures"]["groups"]) == {"rgb sigma 25", "clean"}
    assert "Forms in which pictures come" not in Page(render(make_report())).text


def test_the_long_table_of_int8_is_folded_and_its_scatter_has_an_axis() -> None:
    groups = [
        {"name": f"layer {i}", "drop": 0.001 * i, "worst_tile_drop": 0.01, "share": 0.05, "int8": i < 19}
        for i in range(20)
    ]
    search = {
        "groups": groups,
        "share": 0.95,
        "drop": 0.06,
        "worst_tile_drop": 0.1,
        "budget": 0.1,
        "sensitivity_tiles": [1],
        "curve": [(0.5, 0.02), (0.95, 0.06)],
    }
    html = render(make_report(int8=search))
    assert Page(html).open == []
    folded = html[html.index("<details>") : html.index("</details>")]
    assert folded.count("<tr>") == 21
    assert "of multiply-accumulates in INT8" in html
    assert re.search(r'text-anchor="end">0.05</text>', html)
