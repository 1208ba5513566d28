"""The manifest of a model file: what a device needs to know about it, and what was proved of it.

The dataclasses below are the format: their types are checked on the way in and on the way out, and a
file that does not match is refused by field name.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from echoir.runtime.checked import EDITED, FileName, Must, Natural, Positive, Seconds, Sha256, Text, kind_of, parse
from echoir.runtime.descriptor import CHANNELS, Descriptor, Planes
from echoir.runtime.errors import ArtifactError

FORMAT = 4
Role = Literal["input", "output"]
SUFFIXES = {".onnx": ("onnxruntime",), ".engine": ("tensorrt", "tensorrt-rtx")}


@dataclass(frozen=True)
class CheckpointRecord:
    """The weights that went in."""

    name: Text
    sha256: Sha256


@dataclass(frozen=True)
class Model:
    """The model file; :func:`write_artifact` fills in all but the backend."""

    backend: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
    file: FileName = ""
    sha256: Sha256 = ""
    bytes: Positive = 0


@dataclass(frozen=True)
class Precision:
    """The precision asked for, the nodes that keep a higher one, by type, and those that compute on INT8."""

    name: Literal["fp32", "fp16", "int8"]
    higher: dict[str, tuple[str, ...]] = field(default_factory=dict)
    int8: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tile:
    """What the artifact chose: the input shape in pixels, the default overlap, and the batch (None: any).

    Of two tiles that meet, the ``margin`` pixels next to either's edge count for nothing: there the network lacks what
    it needs to see. Twice of it is at most the overlap; 0 fades over all that tiles share.

    Where ``most`` is not None, height and width are free: any multiples of the network's with at most so many pixels
    (:func:`echoir.runtime.fit.fitted` chooses). ``height`` and ``width`` are then one such choice.
    """

    height: Positive
    width: Positive
    overlap: Natural
    batch: Annotated[
        int | None, Must("a whole number from 1 up, or null", lambda value: value is None or value >= 1)
    ] = None
    most: Positive | None = None
    margin: Natural = 0


@dataclass(frozen=True)
class TensorSpec:
    """The model's one input or one output, of full range (0 to 1, or 0 to 255)."""

    name: Text
    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["float32", "uint8"]
    range: tuple[float, float]
    colour: Planes = "RGB"

    @property
    def channels(self) -> int:
        """How many planes it has."""
        return CHANNELS[self.colour]

    def shape(self, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The tensor's shape for these sizes."""
        c = self.channels
        return (batch, c, height, width) if self.layout == "NCHW" else (batch, height, width, c)


FLOAT_NCHW = {"layout": "NCHW", "dtype": "float32", "range": (0.0, 1.0)}
UINT8_NHWC = {"layout": "NHWC", "dtype": "uint8", "range": (0.0, 255.0)}


@dataclass(frozen=True)
class Engine:
    """How and for what an engine was built."""

    tensorrt: Text
    compute_capability: tuple[str, ...]
    build_seconds: Seconds
    gpu: str | None = None
    driver: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """What an int8 model rests on: tiles that set its ranges, and others that its layers were chosen on.

    ``fingerprint`` is the SHA-256 of all those tiles; ``budget`` and ``drop`` (on the sensitivity
    tiles) are in dB; ``share`` is that of multiply-accumulates in INT8.
    """

    fingerprint: Text
    method: Text
    tiles: Positive
    sensitivity_tiles: Positive
    equalized: tuple[str, ...]
    budget: float
    drop: float
    share: Annotated[float, Must("a share from 0 to 1", lambda value: 0 <= value <= 1)]


@dataclass(frozen=True)
class GoldenRecord:
    """The file of tiles, and of what PyTorch made of them, that lies beside the artifact; and how many it holds."""

    file: FileName
    sha256: Sha256
    bytes: Positive
    tiles: Positive


@dataclass(frozen=True)
class Manifest:
    """Everything a device needs to know about a model file.

    ``onnx_sha256`` is that of the ONNX file an engine was built from, or of the model itself.
    ``parity`` holds the figures against PyTorch and the gate they passed; None before measurement.
    ``golden`` names the tiles that prove the artifact where PyTorch is not; None if none were kept.
    """

    name: Text
    network: Descriptor
    checkpoint: CheckpointRecord
    model: Model
    precision: Precision
    tile: Tile
    input: TensorSpec
    output: TensorSpec
    versions: dict[str, str]
    onnx_sha256: Sha256 = ""
    engine: Engine | None = None
    calibration: Calibration | None = None
    parity: dict[str, Any] | None = None
    golden: GoldenRecord | None = None
    format: int = FORMAT

    @property
    def task(self) -> str:
        """What the network restores."""
        return self.network.task

    def shape(self, role: Role, batch: int) -> tuple[int, int, int, int]:
        """Of the model's input or output for so many tiles."""
        spec, scale = (self.input, 1) if role == "input" else (self.output, self.network.scale)
        return spec.shape(batch, scale * self.tile.height, scale * self.tile.width)

    def with_tile(self, height: int, width: int) -> Manifest:
        """This manifest for tiles of another size."""
        return replace(self, tile=replace(self.tile, height=height, width=width))

    def of_tiles(self, shape: tuple[int, ...]) -> Manifest:
        """This manifest for an input of that shape; the same where its tiles are fixed, or cannot have those sides."""
        most = self.tile.most
        if most is None or len(shape) != 4:
            return self
        height, width = shape[2:] if self.input.layout == "NCHW" else shape[1:3]
        free = all(side % multiple == 0 for side, multiple in zip((height, width), self.network.multiple, strict=True))
        return self.with_tile(height, width) if free and 0 < height * width <= most else self

    def to_json(self) -> str:
        """The manifest as JSON text, checked like :meth:`from_json` checks it.

        Raises:
            ArtifactError: a field has the wrong type or value, named with what is needed.
        """
        values = asdict(self)
        _check_together(parse(Manifest, values, ""))
        return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read and check a manifest, of this format or an earlier one.

        Raises:
            ArtifactError: not JSON, another format version, or a field that is missing, unknown,
                or of the wrong type or value.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArtifactError("manifest", f"text that is not JSON ({error})", "a JSON object", EDITED) from None
        if not isinstance(values, dict):
            raise ArtifactError("manifest", kind_of(values), "a JSON object", EDITED)
        version = values.get("format", "nothing")
        if type(version) is not int or not 1 <= version <= FORMAT:
            newer = type(version) is int and version > FORMAT
            hint = (
                "it was written by a newer echoir: upgrade, or export again" if newer else "export the artifact again"
            )
            raise ArtifactError("format", version, FORMAT, hint)
        for upgrade in (_from_1, _from_2, _from_3)[version - 1 :]:
            values = upgrade(values)
        manifest = parse(cls, values, "")
        _check_together(manifest)
        return manifest


def _from_1(values: dict[str, Any]) -> dict[str, Any]:
    """A manifest of format 1 as one of format 2; parsing refuses what is wrong in either.

    In format 1 every network was EchoIR, and the tile carried what its sides are multiples of.
    """
    rest = {name: value for name, value in values.items() if name != "task"}
    network, tile = values.get("network"), values.get("tile")
    if not isinstance(network, dict) or not isinstance(tile, dict):
        return rest
    alignment = tile.get("alignment")
    described = {
        "architecture": "EchoIR",
        "task": values.get("task"),
        "variant": network.get("preset"),
        "scale": 1,
        "input": "RGB",
        "output": "RGB",
        "multiple": [alignment, alignment],
        "phase": [1, 1],
        "overlap": 0,
        "tile": [256, 256],
        "local": False,
        "measured": [],
    }
    network, tile = (
        {name: value for name, value in old.items() if name not in ("preset", "alignment")} for old in (network, tile)
    )
    return rest | {"network": network | described, "tile": tile, "format": 2}


def _from_2(values: dict[str, Any]) -> dict[str, Any]:
    """A manifest of format 2 as one of format 3: tiles were fixed, and no network said what it was trained on."""
    network, tile = values.get("network"), values.get("tile")
    if isinstance(network, dict):
        network = network | {"forms": []}
    if isinstance(tile, dict):
        tile = tile | {"most": None}
    golden = {"golden": None}  # which the first artifacts of format 2 did not have
    return golden | values | {"network": network, "tile": tile, "format": 3}


def _from_3(values: dict[str, Any]) -> dict[str, Any]:
    """A manifest of format 3 as one of format 4: tiles faded over all that they share."""
    tile = values.get("tile")
    if isinstance(tile, dict):
        tile = tile | {"margin": 0}
    return values | {"tile": tile, "format": 4}


def check_tile(network: Descriptor, height: int, width: int, overlap: int) -> None:
    """Refuse a tile and an overlap, all in pixels of the input, that do not fit a network.

    Raises:
        ArtifactError: which of the two, and what the network needs.
    """
    sides = {"height": height, "width": width}
    for (side, size), multiple in zip(sides.items(), network.multiple, strict=True):
        if size < 1 or size % multiple:
            raise ArtifactError(f"tile.{side}", size, f"a multiple of network.multiple, {multiple}")
    for size, phase in zip(sides.values(), network.phase, strict=True):
        if overlap > (most := size - phase):
            hint = f"tiles of {size} pixels start at least {phase} apart"
            raise ArtifactError("tile.overlap", overlap, f"at most {most}", hint)
    if overlap < network.overlap:
        raise ArtifactError("tile.overlap", overlap, f"at least network.overlap, {network.overlap}")


def _check_together(manifest: Manifest) -> None:
    """Conditions that tie several fields together."""
    network, tile, model = manifest.network, manifest.tile, manifest.model
    check_tile(network, tile.height, tile.width, tile.overlap)
    if 2 * tile.margin > tile.overlap:
        raise ArtifactError("tile.margin", tile.margin, f"at most {tile.overlap // 2}, half of tile.overlap", EDITED)
    for role in ("input", "output"):
        spec: TensorSpec = getattr(manifest, role)
        if spec.colour != (planes := getattr(network, role)):
            raise ArtifactError(f"{role}.colour", spec.colour, f"{planes}, as network.{role}", EDITED)
        full = UINT8_NHWC["range"] if spec.dtype == "uint8" else FLOAT_NCHW["range"]
        if spec.range != full:
            raise ArtifactError(f"{role}.range", list(spec.range), list(full), f"pixels are {spec.dtype}")
    if tile.most is not None:
        if model.backend != "onnxruntime":
            raise ArtifactError("tile.most", tile.most, "null", "an engine has one shape")
        if tile.height * tile.width > tile.most:
            raise ArtifactError("tile.most", tile.most, f"at least {tile.height * tile.width}, height x width", EDITED)
    if model.backend not in SUFFIXES.get(Path(model.file).suffix, ()):
        needed = next(suffix for suffix, backends in SUFFIXES.items() if model.backend in backends)
        raise ArtifactError("model.file", model.file, f"a name ending in {needed}", f"the backend is {model.backend}")
    if model.backend == "onnxruntime" and manifest.onnx_sha256 != model.sha256:
        raise ArtifactError("onnx_sha256", manifest.onnx_sha256, f"{model.sha256}, as model.sha256", EDITED)
    if (model.backend == "onnxruntime") != (manifest.engine is None):
        found, needed = ("nothing", "an engine's record") if manifest.engine is None else ("a record", "null")
        raise ArtifactError("engine", found, needed, f"the backend is {model.backend}")
