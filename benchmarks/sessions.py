"""Every session on this processor: networks x precisions x libraries, with dB from PyTorch, and peers beside them.

    python benchmarks/sessions.py --work DIR [--networks denoise realnoise small] [--calibration DIR] [--peers]

The artifacts are exported into ``--work``, where the next run finds them; INT8 needs ``--calibration``, and is made of
shipped checkpoints alone; a preset has random weights. All sessions of a network run the same tile of 256 x 256 in
turns. Columns: milliseconds (median), the median quotient to ONNX Runtime's float32 over turns, and dB from PyTorch's
float32 on the worst of the shipped pictures. ``--peers`` adds FFDNet (Zhang et al. 2018, 852,108 parameters) and the
compact network of Real-ESRGAN x 2 (Wang et al. 2021, 16 convolutions of 64 channels), written anew with random weights:
for their time.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from subjects import network
from torch import Tensor, nn

from echoir.checkpoint import load_checkpoint, save_checkpoint
from echoir.export.pipeline import export_artifact
from echoir.export.reference import PyTorchSession
from echoir.export.request import Request
from echoir.export.sources import TorchSource
from echoir.export.typed import export_onnx
from echoir.networks.echoir import PRESETS
from echoir.runtime.artifact import Artifact, write_artifact
from echoir.runtime.bench import Subject, measure, ratio, subject
from echoir.runtime.choice import picture_tiles
from echoir.runtime.contract import Device
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ArtifactError, BackendError, EchoIRError
from echoir.runtime.machine import describe_machine
from echoir.runtime.manifest import FLOAT_NCHW, Manifest, Model, TensorSpec, Tile
from echoir.runtime.manifest import Precision as Typed
from echoir.runtime.sessions import open_session

Precision = Literal["fp32", "fp16", "int8"]
WAYS: list[tuple[Precision, Device]] = [
    ("fp32", "cpu"), ("fp16", "cpu"), ("int8", "cpu"),
    ("fp32", "openvino"), ("fp32", "openvino-bf16"), ("int8", "openvino"),
]  # fmt: skip
NAMES = {"cpu": "ONNX Runtime", "openvino": "OpenVINO", "openvino-bf16": "OpenVINO in bfloat16,"}
TILE = (256, 256)


class FFDNet(nn.Module):
    """For colour: half resolution, a plane of sigma, twelve convolutions of 96 channels."""

    def __init__(self) -> None:
        super().__init__()
        widths = [13, *[96] * 11, 12]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))

    def forward(self, image: Tensor) -> Tensor:
        x = F.pixel_unshuffle(image, 2)
        x = torch.cat([x, torch.full_like(x[:, :1], 25 / 255)], 1)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return F.pixel_shuffle(self.layers[-1](x), 2)


class Compact(nn.Module):
    """SRVGGNetCompact x 2."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for given in (3, *[64] * 16):
            layers += [nn.Conv2d(given, 64, 3, padding=1), nn.PReLU(64)]
        self.body = nn.Sequential(*layers, nn.Conv2d(64, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.body(image) + F.interpolate(image, scale_factor=2, mode="nearest")
        return out


def exported(work: Path, name: str, precision: Precision, calibration: Path | None) -> Artifact | None:
    """An artifact of a checkpoint or a preset, from an earlier run or made now; None where it cannot be."""
    folder = work / f"{name}-{precision}"
    try:
        return Artifact.open(folder)
    except ArtifactError:
        pass
    if precision == "int8" and (calibration is None or name in PRESETS):
        return None
    weights = name
    if name in PRESETS:
        weights = str(work / f"{name}.safetensors")
        save_checkpoint(weights, network(name), "denoise", name, {})
    request = Request(
        weights=weights,
        precision=precision,
        targets=("onnx",),
        tile=TILE,
        limit=1,
        output=folder,
        calibration=calibration if precision == "int8" else None,
        remainder="fp32" if precision == "int8" else "fp16",  # for CPUs; of the others it says nothing
    )
    return export_artifact(request).artifacts[0]


def peer(work: Path, name: str, source: TorchSource) -> Artifact:
    """A network that is no preset, in float32; nothing is proved of it."""
    path = work / f"{name}.onnx"
    export_onnx(source, path, tile=TILE)
    planes = {role: TensorSpec(role, **FLOAT_NCHW) for role in ("input", "output")}  # type: ignore[arg-type]
    manifest = Manifest(
        name=name,
        network=source.descriptor,
        checkpoint=source.record,
        model=Model("onnxruntime"),
        precision=Typed("fp32"),
        tile=Tile(*TILE, 32, 1),
        versions={},
        **planes,
    )
    return write_artifact(manifest, path)


def rows(
    name: str, source: TorchSource, artifacts: dict[Precision, Artifact], options: argparse.Namespace
) -> tuple[list[str], list[str]]:
    """Lines of the table for one network, and why some are missing."""
    missing: list[str] = []
    with ExitStack() as stack:
        subjects: list[Subject] = []
        for precision, device in WAYS:
            if precision not in artifacts:
                continue
            label, artifact = f"{NAMES[device]} {precision}", artifacts[precision]
            try:
                session = stack.enter_context(open_session(artifact, threads=options.threads, device=device))
                subjects.append(subject(label, artifact.manifest, session))
            except (BackendError, ArtifactError) as error:
                missing.append(f"{name}, {label}: {error}")
        if not subjects:
            return [], missing
        own = artifacts["fp32"].manifest
        eager = source.session(threads=options.threads)
        given = {"PyTorch eager": eager}
        if options.compiled:
            given["PyTorch compiled"] = PyTorchSession(torch.compile(source.module), threads=options.threads)  # type: ignore[arg-type]
        subjects += [Subject(label, one, subjects[0].tiles, TILE, 32) for label, one in given.items()]
        expected = [eager.run(tile) for tile in picture_tiles(own)]
        lines = []
        latencies = measure(subjects, options.turns, 2)
        for one, latency in zip(subjects, latencies, strict=True):
            made = [one.session.run(tile) for tile in picture_tiles(own)]
            square = max(float(np.square(a - b).mean()) for a, b in zip(made, expected, strict=True))
            distance = f"{-10 * np.log10(square):.1f}" if square else "the same"
            quotient = ratio(latency.seconds, latencies[0].seconds)
            lines.append(
                f"| {name} | {one.name} | {1e3 * latency.percentile(50):.0f} "
                f"| {quotient.median:.2f} ({quotient.p10:.2f} to {quotient.p90:.2f}) | {distance} |"
            )
    return lines, missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--networks", nargs="*", default=["denoise", "realnoise", "small"])
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--compiled", action="store_true", help="PyTorch compiled too (a minute or more each)")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    missing: list[str] = []
    print("| network | session | ms a tile | times ONNX Runtime fp32 (eight in ten) | dB from PyTorch |")
    print("|---|---|---|---|---|", flush=True)
    for name in options.networks:
        made = network(name) if name in PRESETS else load_checkpoint(name).network
        precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
        found = {each: exported(options.work, name, each, options.calibration) for each in precisions}
        artifacts = {precision: artifact for precision, artifact in found.items() if artifact is not None}
        lines, reasons = rows(name, TorchSource(made, made.describe("denoise", name)), artifacts, options)
        print("\n".join(lines), flush=True)
        missing += reasons
    peers = [("FFDNet", FFDNet(), 1, (2, 2)), ("compact x 2", Compact(), 2, (1, 1))] if options.peers else []
    for name, module, scale, multiple in peers:
        parameters = sum(weight.numel() for weight in module.parameters())
        needs = {"multiple": multiple, "phase": multiple, "local": True}
        descriptor = Descriptor(name, "denoise", parameters, scale=scale, **needs)
        source = TorchSource(module.eval().requires_grad_(False), descriptor)
        try:
            lines, reasons = rows(name, source, {"fp32": peer(options.work, name, source)}, options)
        except EchoIRError as error:
            lines, reasons = [], [f"{name}: {error}"]
        print("\n".join(lines), flush=True)
        missing += reasons
    machine = describe_machine()
    print(f"\n{machine.cpu}, {options.threads} thread(s), load {machine.load}, {options.turns} turns")
    print("\n".join(f"left out {line}" for line in missing))


if __name__ == "__main__":
    main()
