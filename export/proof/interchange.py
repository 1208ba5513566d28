"""Golden tiles as other tools read them: numpy, Polygraphy, trtexec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoir.runtime.errors import ArtifactError, needs_extra
from echoir.runtime.files import staged_into
from echoir.runtime.manifest import Manifest

Pairs = Sequence[tuple[NDArray[Any], NDArray[Any]]]  # (input, output) of the model, [N, ...] each
Writer = Callable[[Manifest, Pairs, Path], list[Path]]


def write_npz(manifest: Manifest, pairs: Pairs, folder: Path) -> list[Path]:
    """``inputs.npz`` and ``outputs.npz``: one array for each tile, ``TENSOR_0`` and so on."""
    names = ["inputs.npz", "outputs.npz"]
    with staged_into(folder) as stage:
        for side, (name, tensor) in enumerate(zip(names, _tensors(manifest), strict=True)):
            arrays: dict[str, Any] = {f"{tensor}_{index}": pair[side] for index, pair in enumerate(pairs)}
            np.savez_compressed(stage / name, **arrays)
    return [folder / name for name in names]


def write_polygraphy(manifest: Manifest, pairs: Pairs, folder: Path) -> list[Path]:
    """``inputs.json`` for ``polygraphy run --load-inputs``, ``outputs.json`` for ``--load-outputs``.

    Raises:
        ArtifactError: tiles of which only a part is known, which Polygraphy cannot compare.
        MissingExtraError: Polygraphy is not installed.
    """
    with needs_extra("build"):
        from polygraphy.comparator import RunResults
        from polygraphy.json import save_json
    size, scale = manifest.tile, manifest.network.scale
    whole = manifest.output.shape(size.batch or 1, scale * size.height, scale * size.width)
    if pairs[0][1].shape != whole:
        raise ArtifactError("tile", f"{size.height} x {size.width}", "at most 256 x 256", "use --format npz")
    source, sink = _tensors(manifest)
    results = RunResults()
    results.add([{sink: output} for _, output in pairs], runner_name="PyTorch")
    with staged_into(folder) as stage:
        save_json([{source: given} for given, _ in pairs], str(stage / "inputs.json"))
        results.save(str(stage / "outputs.json"))
    return [folder / "inputs.json", folder / "outputs.json"]


def write_trtexec(manifest: Manifest, pairs: Pairs, folder: Path) -> list[Path]:
    """``input_0.bin``, raw as ``trtexec --loadInputs`` reads it, and ``output_0.npy`` to compare with; and so on."""
    written = []
    with staged_into(folder) as stage:
        for index, (given, output) in enumerate(pairs):
            (stage / f"input_{index}.bin").write_bytes(given.tobytes())
            np.save(stage / f"output_{index}.npy", output)
            written += [folder / f"input_{index}.bin", folder / f"output_{index}.npy"]
    return written


def _tensors(manifest: Manifest) -> tuple[str, str]:
    return manifest.input.name, manifest.output.name


WRITERS: dict[str, Writer] = {"npz": write_npz, "polygraphy": write_polygraphy, "trtexec": write_trtexec}
