"""How fast a session is: latency, throughput and memory.

Sessions that are compared run in turn, in one process, so that a machine's changing clocks and
other load fall on all of them alike; a ratio is the median over such turns.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from echoir.runtime.contract import Session
from echoir.runtime.fit import TITLE, Fit, fits
from echoir.runtime.machine import Machine
from echoir.runtime.manifest import Manifest, TensorSpec
from echoir.runtime.profiling import Profile

Array = np.ndarray[Any, np.dtype[Any]]

# Worker threads of one library keep spinning for a moment after its run and would slow the next one's.
PAUSE = 0.01  # seconds
Side = Literal["input", "output"]
SIDES: tuple[Side, ...] = ("input", "output")


@dataclass(frozen=True)
class Subject:
    """A session, the batch it is timed on, and the tile (height, width) and overlap in pixels of its input.

    ``area``: pixels of a picture that goes in, and of what comes out, for each pixel of a tile.
    """

    name: str
    session: Session
    tiles: Array
    tile: tuple[int, int]
    overlap: int
    area: tuple[int, int] = (1, 1)


def subject(name: str, manifest: Manifest, session: Session, batch: int | None = None) -> Subject:
    """A session with a batch of noise, of the manifest's size (or one tile) unless told."""
    tile = (manifest.tile.height, manifest.tile.width)
    tiles = sample_tiles(manifest.input, tile, batch or manifest.tile.batch or 1)
    area = manifest.network.mosaic**2, manifest.network.scale**2
    return Subject(name, session, tiles, tile, manifest.tile.overlap, area)


@dataclass(frozen=True)
class Latency:
    """Times of one session.

    Args:
        name: of the session.
        seconds: one entry per run of a whole batch, in the order they ran.
        batch: tiles per run.
        tile: height and width of a tile in pixels.
        overlap: pixels that neighbouring tiles share.
        area: pixels of a picture that goes in, and of what comes out, for each pixel of a tile.
    """

    name: str
    seconds: tuple[float, ...]
    batch: int
    tile: tuple[int, int]
    overlap: int
    area: tuple[int, int] = (1, 1)

    def percentile(self, percent: float) -> float:
        """Seconds per batch."""
        return float(np.percentile(self.seconds, percent))

    def seconds_per_megapixel(self, side: Side) -> tuple[float, ...]:
        """Of every run, before any overlap: comparable where batches or tiles differ."""
        return tuple(seconds / self._megapixels(side, 0) for seconds in self.seconds)

    def megapixels_per_second(self, side: Side) -> float:
        """Pixels of tiles that go into the session, or come out, at the median."""
        return self._megapixels(side, 0) / self.percentile(50)

    def effective_megapixels_per_second(self, side: Side) -> float:
        """Pixels of a large image restored, at the median: every tile adds all but its overlap."""
        return self._megapixels(side, self.overlap) / self.percentile(50)

    def _megapixels(self, side: Side, overlap: int) -> float:
        height, width = (length - overlap for length in self.tile)
        return self.batch * height * width * self.area[SIDES.index(side)] / 1e6

    def to_dict(self) -> dict[str, Any]:
        """Milliseconds per batch and per tile, and throughput going in and coming out, JSON-ready."""
        p50, p99 = self.percentile(50) * 1e3, self.percentile(99) * 1e3
        return {
            "name": self.name,
            "batch": self.batch,
            "tile": list(self.tile),
            "overlap": self.overlap,
            "iterations": len(self.seconds),
            "batch_ms": {"p50": p50, "p99": p99},
            "tile_ms": {"p50": p50 / self.batch, "p99": p99 / self.batch},
            "megapixels_per_s": {side: self.megapixels_per_second(side) for side in SIDES},
            "effective_megapixels_per_s": {side: self.effective_megapixels_per_second(side) for side in SIDES},
        }


def sample_tiles(spec: TensorSpec, tile: tuple[int, int], batch: int) -> Array:
    """A batch of noise in the layout, dtype and range that a session takes; the same on every call.

    Noise, not zeros: constant input can hit fast paths, and denormals slow ones.
    """
    low, high = spec.range
    noise = np.random.default_rng(0).uniform(low, high, (batch, *tile, spec.channels))
    tiles = np.rint(noise).astype(np.uint8) if spec.dtype == "uint8" else noise.astype(np.float32)
    return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2)) if spec.layout == "NCHW" else tiles


def time_in_turn(subjects: Sequence[Subject], iterations: int, warmup: int) -> list[tuple[float, ...]]:
    """Seconds of every run: one list per subject, entry i of each from the same turn.

    The order within a turn is reversed from turn to turn, so that none always runs first.
    """
    for _ in range(warmup):
        for subject in subjects:
            subject.session.run(subject.tiles)
    times: list[list[float]] = [[] for _ in subjects]
    for turn in range(iterations):
        order = list(enumerate(subjects))
        for index, subject in order if turn % 2 == 0 else reversed(order):
            if len(subjects) > 1:
                time.sleep(PAUSE)
            start = time.perf_counter()
            subject.session.run(subject.tiles)
            times[index].append(time.perf_counter() - start)
    return [tuple(seconds) for seconds in times]


def measure(subjects: Sequence[Subject], iterations: int, warmup: int) -> list[Latency]:
    """Time sessions in turn; see :func:`time_in_turn`."""
    times = time_in_turn(subjects, iterations, warmup)
    pairs = zip(subjects, times, strict=True)
    return [Latency(s.name, seconds, len(s.tiles), s.tile, s.overlap, s.area) for s, seconds in pairs]


@dataclass(frozen=True)
class Ratio:
    """Quotients of two subjects' times over turns: the median, and the middle eight tenths."""

    median: float
    p10: float
    p90: float
    pairs: int


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """How many times longer the numerator took, turn by turn."""
    quotients = np.asarray(numerator) / np.asarray(denominator)
    p10, median, p90 = (float(np.percentile(quotients, percent)) for percent in (10, 50, 90))
    return Ratio(median, p10, p90, len(quotients))


def peak_memory() -> int:
    """The process's peak resident memory so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def report(
    manifest: Manifest,
    latencies: Sequence[Latency],
    *,
    threads: int,
    memory: tuple[int, int],
    machine: Machine,
    profile: Profile | None,
) -> dict[str, Any]:
    """Everything measured, JSON-ready.

    Args:
        latencies: the artifact's own first, then what it is compared with.
        memory: peak resident bytes before the session was opened, and after it ran.
    """
    own, *others = latencies
    return {
        "artifact": {"name": manifest.name, "backend": manifest.model.backend, "precision": manifest.precision.name},
        "threads": threads,
        "latency": [latency.to_dict() for latency in latencies],
        "ratios": {
            other.name: {
                f"per_{side}_pixel": asdict(ratio(other.seconds_per_megapixel(side), own.seconds_per_megapixel(side)))
                for side in SIDES
            }
            for other in others
        },
        "memory": {"before_bytes": memory[0], "peak_bytes": memory[1]},
        "profile": asdict(profile) if profile else None,
        "machine": asdict(machine),
        "pictures": {name: _picture(fit, own) for name, fit in fits(manifest).items()},
    }


def _picture(fit: Fit, latency: Latency) -> dict[str, Any]:
    """What a picture costs, and its seconds by the median of a pixel: reading, blending and writing come on top."""
    pixels = fit.tiles * fit.tile[0] * fit.tile[1]
    timed = latency.batch * latency.tile[0] * latency.tile[1]
    return asdict(fit) | {"seconds": latency.percentile(50) * pixels / timed}


def as_text(result: dict[str, Any], operators: int = 8) -> str:
    """What :func:`report` gave, for reading.

    Args:
        operators: how many operator types to list; the rest is added up.
    """
    artifact, memory, machine = result["artifact"], result["memory"], result["machine"]
    first = result["latency"][0]
    larger = any(own["megapixels_per_s"]["input"] != own["megapixels_per_s"]["output"] for own in result["latency"])
    tile = " x ".join(map(str, first["tile"]))
    lines = [
        f"{artifact['name']}: {artifact['backend']}, {artifact['precision']}, tile {tile}, overlap {first['overlap']}, "
        f"threads {result['threads']}, {first['iterations']} runs in turn",
        "",
        f"{'':<24}{'p50':>11}{'p99':>11}{'per tile p50':>14}{'p99':>11}{'MP/s':>9}{'effective':>11}"
        + (f"{'out':>11}" if larger else ""),
    ]
    for own in result["latency"]:
        batch, each = own["batch_ms"], own["tile_ms"]
        given, made = (own["effective_megapixels_per_s"][side] for side in SIDES)
        lines.append(
            f"{_shorten(own['name'], 14) + ', batch ' + str(own['batch']):<24}"
            f"{batch['p50']:>8.1f} ms{batch['p99']:>8.1f} ms{each['p50']:>11.1f} ms{each['p99']:>8.1f} ms"
            f"{own['megapixels_per_s']['input']:>9.3f}{given:>11.3f}" + (f"{made:>11.3f}" if larger else "")
        )
    lines.append(
        "MP/s: megapixels of tiles that go in, a second; effective: of the picture, whose tiles share their overlap"
        + ("; out: of what it becomes" if larger else "")
    )
    for name, quotients in result["ratios"].items():
        given, made = quotients["per_input_pixel"], quotients["per_output_pixel"]
        same = math.isclose(given["median"], made["median"], rel_tol=1e-9)
        told = {"per pixel": given} if same else {"per pixel that goes in": given, "per pixel that comes out": made}
        for words, quotient in told.items():
            lines.append(
                f"{name} takes {quotient['median']:.2f} times as long {words} (median of {quotient['pairs']} turns; "
                f"eight in ten between {quotient['p10']:.2f} and {quotient['p90']:.2f})"
            )
    before, peak = (f"{memory[name] / (1 << 20):.0f} MiB" for name in ("before_bytes", "peak_bytes"))
    lines += ["", f"{TITLE}; its time (reading, blending and writing come on top)"]
    for name, picture in result["pictures"].items():
        fit = Fit(**{field: value for field, value in picture.items() if field != "seconds"})
        lines.append(f"{name:<16}{fit.text}{picture['seconds']:>12.4g} s")
    lines += ["", f"peak memory {peak} ({before} before the session was opened)"]
    if (profile := result["profile"]) is not None:
        lines += ["", *_profile_text(profile, operators)]
    lines += ["", *(f"{name.replace('_', ' '):<14}{value}" for name, value in machine.items())]
    return "\n".join(lines)


def _profile_text(profile: dict[str, Any], operators: int) -> list[str]:
    lines = [f"time in operators, {profile['milliseconds']:.1f} ms per run"]
    lines += _shares(profile["operators"], operators, "types")
    if profile["modules"]:
        lines += ["by module", *_shares(profile["modules"], operators, "modules")]
    lines += [f"{name}, within its modules{share:>7.1%}" for name, share in profile["functions"].items()]
    return lines


def _shares(shares: dict[str, float], count: int, kind: str) -> list[str]:
    """The largest, and the others added up."""
    rows = list(shares.items())
    shown, rest = rows[:count], rows[count:]
    if rest:
        shown.append((f"{len(rest)} other {kind}", sum(share for _, share in rest)))
    return [f"  {name:<22}{share:>7.1%}" for name, share in shown]


def _shorten(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
