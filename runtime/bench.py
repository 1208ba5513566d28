"""How fast a session is: latency, throughput and memory.

Sessions that are compared run in turn, in one process, so that a machine's changing clocks and
other load fall on all of them alike; a ratio is the median over such turns.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from echoir.runtime.contract import Session
from echoir.runtime.fit import SIZES, waste
from echoir.runtime.machine import Machine
from echoir.runtime.manifest import Manifest, TensorSpec
from echoir.runtime.profiling import Profile

Array = np.ndarray[Any, np.dtype[Any]]

# Worker threads of one library keep spinning for a moment after its run and would slow the next one's.
PAUSE = 0.01  # seconds


@dataclass(frozen=True)
class Subject:
    """A session, the batch it is timed on, and the tile (height, width) and overlap in pixels."""

    name: str
    session: Session
    tiles: Array
    tile: tuple[int, int]
    overlap: int


def subject(name: str, manifest: Manifest, session: Session, batch: int | None = None) -> Subject:
    """A session with a batch of noise, of the manifest's size (or one tile) unless told."""
    tile = (manifest.tile.height, manifest.tile.width)
    tiles = sample_tiles(manifest.input, tile, batch or manifest.tile.batch or 1)
    return Subject(name, session, tiles, tile, manifest.tile.overlap)


@dataclass(frozen=True)
class Latency:
    """Times of one session.

    Args:
        name: of the session.
        seconds: one entry per run of a whole batch, in the order they ran.
        batch: tiles per run.
        tile: height and width of a tile in pixels.
        overlap: pixels that neighbouring tiles share.
    """

    name: str
    seconds: tuple[float, ...]
    batch: int
    tile: tuple[int, int]
    overlap: int

    def percentile(self, percent: float) -> float:
        """Seconds per batch."""
        return float(np.percentile(self.seconds, percent))

    @property
    def seconds_per_megapixel(self) -> tuple[float, ...]:
        """Of every run: comparable where batches or tiles differ."""
        megapixels = self.batch * self.tile[0] * self.tile[1] / 1e6
        return tuple(seconds / megapixels for seconds in self.seconds)

    @property
    def megapixels_per_second(self) -> float:
        """Pixels that go through the session, at the median."""
        return self.batch * self.tile[0] * self.tile[1] / 1e6 / self.percentile(50)

    @property
    def effective_megapixels_per_second(self) -> float:
        """Pixels of a large image restored, at the median: every tile adds all but its overlap."""
        height, width = (side - self.overlap for side in self.tile)
        return self.batch * height * width / 1e6 / self.percentile(50)

    def to_dict(self) -> dict[str, Any]:
        """Milliseconds per batch and per tile, and throughput, JSON-ready."""
        p50, p99 = self.percentile(50) * 1e3, self.percentile(99) * 1e3
        return {
            "name": self.name,
            "batch": self.batch,
            "tile": list(self.tile),
            "overlap": self.overlap,
            "iterations": len(self.seconds),
            "batch_ms": {"p50": p50, "p99": p99},
            "tile_ms": {"p50": p50 / self.batch, "p99": p99 / self.batch},
            "megapixels_per_s": self.megapixels_per_second,
            "effective_megapixels_per_s": self.effective_megapixels_per_second,
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
    return [Latency(s.name, seconds, len(s.tiles), s.tile, s.overlap) for s, seconds in pairs]


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
            other.name: asdict(ratio(other.seconds_per_megapixel, own.seconds_per_megapixel)) for other in others
        },
        "memory": {"before_bytes": memory[0], "peak_bytes": memory[1]},
        "profile": asdict(profile) if profile else None,
        "machine": asdict(machine),
        "waste": {name: waste(manifest, *size)[2] for name, size in SIZES.items()},
    }


def as_text(result: dict[str, Any], operators: int = 8) -> str:
    """What :func:`report` gave, for reading.

    Args:
        operators: how many operator types to list; the rest is added up.
    """
    artifact, memory, machine = result["artifact"], result["memory"], result["machine"]
    first = result["latency"][0]
    tile = " x ".join(map(str, first["tile"]))
    lines = [
        f"{artifact['name']}: {artifact['backend']}, {artifact['precision']}, tile {tile}, overlap {first['overlap']}, "
        f"threads {result['threads']}, {first['iterations']} runs in turn",
        "",
        f"{'':<24}{'p50':>11}{'p99':>11}{'per tile p50':>14}{'p99':>11}{'MP/s':>9}{'effective':>11}",
    ]
    for own in result["latency"]:
        batch, each = own["batch_ms"], own["tile_ms"]
        lines.append(
            f"{_shorten(own['name'], 14) + ', batch ' + str(own['batch']):<24}"
            f"{batch['p50']:>8.1f} ms{batch['p99']:>8.1f} ms{each['p50']:>11.1f} ms{each['p99']:>8.1f} ms"
            f"{own['megapixels_per_s']:>9.3f}{own['effective_megapixels_per_s']:>11.3f}"
        )
    lines.append(
        "MP/s: megapixels of tiles a second; effective: of the picture, where neighbouring tiles share their overlap"
    )
    for name, quotient in result["ratios"].items():
        lines.append(
            f"{name} takes {quotient['median']:.2f} times as long per pixel (median of {quotient['pairs']} turns; "
            f"eight in ten between {quotient['p10']:.2f} and {quotient['p90']:.2f})"
        )
    before, peak = (f"{memory[name] / (1 << 20):.0f} MiB" for name in ("before_bytes", "peak_bytes"))
    costs = ", ".join(f"{name} {cost:.2f}" for name, cost in result["waste"].items())
    lines += ["", f"pixels through the network for each of a picture's: {costs}"]
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
