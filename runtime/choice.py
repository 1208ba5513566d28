"""Which session is the quickest here, of those that give the pixels they should; measured once and remembered."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import get_args

import numpy as np

from echoir.runtime.artifact import Artifact
from echoir.runtime.caches import cache_folder, keep, recall
from echoir.runtime.channels import tensor_of
from echoir.runtime.contract import Array, Device, Session
from echoir.runtime.errors import ArtifactError, BackendError
from echoir.runtime.images import open_picture
from echoir.runtime.machine import describe_machine, usable_cores
from echoir.runtime.manifest import Manifest
from echoir.runtime.tiling import reflect

FORMAT = 1
REFERENCE: Device = "cpu"  # what the gate of every export ran on
GATE, GATE_CODES = 55.0, 52.5  # dB from it, as for fp16; of models that give 8-bit codes, which are rounded
SIGMA = 25.0  # codes
CLOSE = 0.95  # of the reference's time: what gains less is not worth other pixels
MEMORY = 1 << 20  # bytes of remembered choices

Open = Callable[[Device], Session]


@dataclass(frozen=True)
class Figure:
    """What was measured of one session.

    Attributes:
        device: its name.
        seconds: the least that a tile took; None where it could not be opened or run.
        psnr: from the reference, in dB, of the worst tile; None where it is the same to the bit, or did not run.
        reason: why it was not taken; empty if it passed.
    """

    device: str
    seconds: float | None
    psnr: float | None
    reason: str = ""

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.device}: {self.reason}"
        distance = "" if self.device == REFERENCE else f", {psnr_text(self.psnr)} from {REFERENCE}"
        return f"{self.device}: {self.seconds * 1e3:.1f} ms a tile{distance}" + (f"; {self.reason}" * bool(self.reason))


@dataclass(frozen=True)
class Choice:
    """The session to take, and why."""

    device: Device
    figures: tuple[Figure, ...] = ()
    remembered: bool = False

    def __str__(self) -> str:
        if not self.figures:
            return f"runs on {self.device}, the only session here"
        measured = "as measured before" if self.remembered else "measured now"
        return f"runs on {self.device}, {measured} ({'; '.join(map(str, self.figures))})"


def installed() -> list[Device]:
    """The sessions that could run an ONNX model here, the reference first."""
    import onnxruntime

    found: list[Device] = [REFERENCE]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        found.append("cuda")
    if importlib.util.find_spec("openvino") is not None:
        found += ["openvino", "openvino-bf16"]
    return found


def choose(artifact: Artifact, open_: Open, threads: int | None = None) -> Choice:
    """The quickest session that passes the gate.

    Every session runs the same tiles in turn, in alternating order: the middles of the shipped pictures with noise, as
    the exporter's gate takes them. What was measured is remembered for this model, number of threads, processor
    and versions.

    Args:
        artifact: to run.
        open_: gives a session of it by name.
        threads: what the sessions are opened with.

    Raises:
        BackendError, ArtifactError: the reference itself does not run.
    """
    devices = installed()
    if len(devices) == 1:
        return Choice(devices[0])
    place = cache_folder("sessions") / f"{_key(artifact, threads, devices)}.json"
    if (before := _read(recall(place), devices)) is not None:
        return before
    figures = _measure(artifact.manifest, devices, open_)
    passed = [figure for figure in figures if not figure.reason]
    own = figures[0].seconds or math.inf
    best = min(passed, key=lambda figure: figure.seconds or math.inf)
    device = best.device if (best.seconds or math.inf) < CLOSE * own else REFERENCE
    choice = Choice(_device(device), tuple(figures))
    record = {"device": choice.device, "figures": [asdict(figure) for figure in figures]}
    keep(place, json.dumps(record, indent=2).encode(), MEMORY)
    return choice


def agreement(manifest: Manifest, reference: Session, session: Session) -> float | None:
    """PSNR in dB between what two sessions make of the worst of the tiles; None: the same to the bit."""
    return _worst([(reference.run(tile), session.run(tile)) for tile in picture_tiles(manifest)], manifest)


def picture_tiles(manifest: Manifest) -> list[Array]:
    """The middle of every shipped picture, with noise of sigma 25 codes: one tile each, as a session takes it."""
    folder = files("echoir") / "pictures"
    paths = sorted(Path(str(path)) for path in folder.iterdir() if path.name.endswith(".webp"))
    tile, spec = manifest.tile, manifest.input
    tiles = []
    for index, path in enumerate(paths):
        pixels = open_picture(path).rgb
        rows, columns = (
            reflect(size, side) if size < side else np.arange((size - side) // 2, (size - side) // 2 + side)
            for size, side in zip(pixels.shape[:2], (tile.height, tile.width), strict=True)
        )
        noise = np.random.default_rng((0, index)).normal(0, SIGMA, (tile.height, tile.width, 3))
        noisy = tensor_of((pixels[rows][:, columns] + noise) / 255, spec.colour)
        if spec.dtype == "uint8":
            noisy = np.rint(noisy.clip(0, 1) * 255)
        batch = np.repeat(noisy[None].astype(spec.dtype), tile.batch or 1, axis=0)
        tiles.append(np.ascontiguousarray(batch.transpose(0, 3, 1, 2) if spec.layout == "NCHW" else batch))
    return tiles


def psnr_text(psnr: float | None) -> str:
    """In words."""
    return "the same to the bit" if psnr is None else f"{psnr:.1f} dB"


def gate(manifest: Manifest) -> float:
    """The least PSNR in dB between a session and the reference.

    Two libraries round an INT8 model differently, and neither is the right one: with errors of one size that have
    nothing to do with each other, they are 3 dB further from each other than each is from PyTorch.
    """
    usual = GATE_CODES if manifest.output.dtype == "uint8" else GATE
    if manifest.precision.name != "int8" or manifest.parity is None:
        return usual
    own = manifest.parity.get("figures", {}).get("engine_against_pytorch", {}).get("psnr_min")
    return min(usual, own - 3) if isinstance(own, float) else usual


def _measure(manifest: Manifest, devices: Sequence[Device], open_: Open) -> list[Figure]:
    tiles = picture_tiles(manifest)
    failures: dict[Device, str] = {}
    times: dict[Device, list[float]] = {device: [] for device in devices}
    results: dict[Device, list[Array]] = {device: [] for device in devices}
    with ExitStack() as stack:
        sessions: dict[Device, Session] = {}
        for device in devices:
            try:
                sessions[device] = stack.enter_context(open_(device))
                sessions[device].run(tiles[0])  # a first run prepares much
            except (BackendError, ArtifactError) as error:  # what one library cannot load another may
                if device == REFERENCE:
                    raise
                failures[device] = str(error)
                sessions.pop(device, None)
        for turn, tile in enumerate(tiles):
            for device, session in list(sessions.items())[:: -1 if turn % 2 else 1]:
                begun = time.perf_counter()
                results[device].append(session.run(tile))
                times[device].append(time.perf_counter() - begun)
    least = gate(manifest)
    figures = []
    for device in devices:
        if device in failures:
            figures.append(Figure(device, None, None, failures[device]))
            continue
        psnr = _worst(list(zip(results[REFERENCE], results[device], strict=True)), manifest)
        reason = f"below the gate of {least:.3g} dB" if psnr is not None and not psnr >= least else ""
        figures.append(Figure(device, min(times[device]) / (manifest.tile.batch or 1), psnr, reason))
    return figures


def _worst(pairs: Sequence[tuple[Array, Array]], manifest: Manifest) -> float | None:
    """The least PSNR of pairs; not a number where one has such pixels, and None where all are equal."""
    white = manifest.output.range[1]
    errors = [float(np.mean(np.square((a.astype(np.float64) - b) / white))) for a, b in pairs]
    worst = max(errors) if not any(math.isnan(error) for error in errors) else math.nan
    return None if worst == 0 else -10 * math.log10(worst)


def _key(artifact: Artifact, threads: int | None, devices: Sequence[Device]) -> str:
    """Everything that a measurement depends on, as a file's name."""
    import hashlib

    parts = [FORMAT, artifact.manifest.model.sha256, threads or 0, usable_cores(), describe_machine().cpu, *devices]
    for package in ("onnxruntime", "onnxruntime-gpu", "openvino"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _read(content: bytes | None, devices: Sequence[Device]) -> Choice | None:
    """What was remembered; None where nothing was, or what is there is damaged."""
    if content is None:
        return None
    try:
        record: Mapping[str, object] = json.loads(content)
        figures = tuple(Figure(**figure) for figure in record["figures"])  # type: ignore[attr-defined]
        device = _device(str(record["device"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return Choice(device, figures, remembered=True) if device in devices else None


def _device(name: str) -> Device:
    for device in get_args(Device):
        if device == name:
            return device
    raise ValueError(f"no session is called {name!r}")
