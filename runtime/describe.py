"""What a manifest says, for people: the command ``inspect``, and a report's account of the artifact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from echoir.runtime.options import artifact

if TYPE_CHECKING:
    from echoir.runtime.manifest import Manifest

LONG = 8  # entries
NAMES = {"onnxruntime": "ONNX Runtime, OpenVINO", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


def describe(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """What it comes to, in some ten facts: names and values."""
    network, tile, model, engine = manifest.network, manifest.tile, manifest.model, manifest.engine
    yield "network", f"{network.name}, {network.parameters:,} parameters, for {network.task}"
    yield "file", f"{model.file}, {model.bytes:,} bytes, SHA-256 {model.sha256}"
    yield "checkpoint", f"{manifest.checkpoint.name}, SHA-256 {manifest.checkpoint.sha256}"
    kept = ", ".join(f"{len(nodes)} nodes in {kind}" for kind, nodes in manifest.precision.higher.items())
    int8 = f", {len(manifest.precision.int8)} layers in INT8" if manifest.precision.int8 else ""
    yield "precision", manifest.precision.name + int8 + (f", {kept}" if kept else "")
    if (calibration := manifest.calibration) is not None:
        yield (
            "calibration",
            f"{calibration.tiles} tiles, ranges by {calibration.method}, layers chosen on "
            f"{calibration.sensitivity_tiles} others, SHA-256 {calibration.fingerprint}",
        )
    runs = NAMES[model.backend]
    if engine is not None:
        built = f", built on {engine.gpu} with driver {engine.driver}" if engine.gpu else ""
        runs += f" {engine.tensorrt}, compute capability {', '.join(engine.compute_capability)}{built}"
    yield "runs on", runs
    batch = "any" if tile.batch is None else str(tile.batch)
    sides = f"{tile.height} x {tile.width}" if tile.most is None else f"what fits, of {tile.most:,} pixels at most"
    margin = f" of which {tile.margin} at either edge count for nothing" if tile.margin else ""
    yield "tile", f"{sides}, overlap {tile.overlap}{margin}, batch {batch}"
    source, sink = (
        f"{spec.dtype} {spec.layout} {spec.colour}, {spec.range[0]:g} to {spec.range[1]:g}"
        for spec in (manifest.input, manifest.output)
    )
    larger = "" if network.scale == 1 else f", {network.scale} times as large"
    yield "input", source
    yield "output", sink + larger
    yield "parity", _parity(manifest.parity)
    if seam := (manifest.parity or {}).get("seam"):
        yield "seam", _seam(seam)
    if manifest.golden is not None:
        yield "golden", f"{manifest.golden.file}, {manifest.golden.tiles} tiles for proof without PyTorch"
    yield "made with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())


def _parity(parity: dict[str, Any] | None) -> str:
    """The verdict of a measurement that a manifest carries."""
    if parity is None:
        return "not measured: echoir parity does, on a machine that runs it"
    gate, figures = parity.get("gate") or {}, parity.get("figures") or {}
    figures = figures.get("engine_against_pytorch", figures)
    psnr = figures.get("psnr_min")
    worst = "" if psnr is None else f"{psnr:.2f} dB from PyTorch at the worst, "
    by = "by golden tiles" if parity.get("proof") == "golden" else "against PyTorch"
    return f"{worst}gate {'passed' if gate.get('passed') else 'FAILED'}, {by}"


def _seam(seam: dict[str, Any]) -> str:
    """How far tiles are from whole pictures."""
    psnrs = [seam[part]["psnr"] for part in ("band", "elsewhere")]
    meet, elsewhere = ("nothing" if psnr is None else f"{psnr:.2f} dB" for psnr in psnrs)
    return f"{meet} from the whole picture where tiles meet, {elsewhere} elsewhere"


@click.command()
@artifact
@click.option("--full", is_flag=True, help="Everything that the manifest says.")
@click.option("--json", "as_json", is_flag=True, help="The manifest as it is.")
def inspect(model: str, full: bool, as_json: bool) -> None:
    """Show what an artifact is, after checking that the model is the file its manifest describes.

    --full adds what its tiles cost at usual sizes of pictures.

    ARTIFACT is a model file, its .json, a folder with one artifact, or http://HOST:PORT/MODEL.
    """
    import json

    from echoir.runtime.fit import wastes
    from echoir.runtime.output import displayable
    from echoir.runtime.sessions import open_model

    manifest = open_model(model).manifest
    text = manifest.to_json()
    if as_json:
        click.echo(text, nl=False)
        return
    if full:
        rows = [row for name, value in json.loads(text).items() for row in _rows(name, value)]
    else:
        rows = [("name", manifest.name), *describe(manifest)]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(displayable(f"{name:<{width}}  {value}"))
    if full:
        click.echo("\n" + "\n".join(wastes(manifest)))


def _rows(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Dotted names and values; long lists by their length, for reading."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _rows(f"{name}.{key}", inner)
    elif isinstance(value, list) and len(value) > LONG:
        yield name, f"{len(value)} entries (--json shows them)"
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value)) or "none"
    else:
        yield name, "none" if value is None or value == {} else str(value)
