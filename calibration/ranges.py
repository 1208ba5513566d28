"""What activations look like, and the range of each that INT8 should cover."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]

LEVELS = 127  # symmetric: codes -127 to 127
SAMPLES = 96  # places whose values are kept, per tile and tensor
BINS = 1024  # of a histogram, for entropy alone


@dataclass(frozen=True)
class Activation:
    """A tensor as the calibration tiles show it.

    Attributes:
        peaks: the largest magnitude of every channel, [C].
        values: at places drawn at random, [C, n].
        places: that every channel had in all.
    """

    peaks: Floats
    values: Floats
    places: int

    @property
    def peak(self) -> float:
        return float(self.peaks.max())


def observe(
    model: onnx.ModelProto,
    tensors: Iterable[str],
    tiles: Iterable[Floats],
    *,
    threads: int | None = None,
    on_tile: Callable[[], None] | None = None,
    seed: int = 0,
) -> dict[str, Activation]:
    """Run tiles through a model and keep what its activations are like.

    Args:
        model: float32, one image per run.
        tensors: what to look at; channels are their second axis, or the last of three.
        tiles: each [1, 3, H, W] or whatever the model takes.
        threads: of ONNX Runtime.
        on_tile: told after every tile.
        seed: of the places.
    """
    names = list(dict.fromkeys(tensors))
    source = model.graph.input[0].name
    inner = [name for name in names if name != source]
    session = open_model(with_outputs(model, inner), threads)
    peaks: dict[str, list[Floats]] = {name: [] for name in names}
    values: dict[str, list[Floats]] = {name: [] for name in names}
    places = dict.fromkeys(names, 0)
    for index, tile in enumerate(tiles):
        rng = np.random.default_rng((seed, index))
        given = session.run(inner, {source: tile}) if inner else []  # no names would be all outputs
        seen = {source: tile, **dict(zip(inner, given, strict=True))}
        for name in names:
            found = seen[name]
            axis = 2 if found.ndim == 3 else 1
            rows = np.moveaxis(found, axis, 0).reshape(found.shape[axis], -1)
            peaks[name].append(np.abs(rows).max(axis=1))
            places[name] += rows.shape[1]
            count = min(SAMPLES, rows.shape[1])
            values[name].append(rows[:, rng.choice(rows.shape[1], count, replace=False)])
        if on_tile is not None:
            on_tile()
    return {
        name: Activation(np.max(peaks[name], axis=0), np.concatenate(values[name], axis=1), places[name])
        for name in names
    }


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy that also gives these intermediate values."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    known = {value.name: value for value in (*result.graph.value_info, *result.graph.output)}
    given = {value.name for value in result.graph.output}
    result.graph.output.extend(known[name] for name in names if name not in given)
    return result


def open_model(model: onnx.ModelProto, threads: int | None) -> Any:
    """An ONNX Runtime session of a model in memory."""
    import onnxruntime

    from echoir.runtime.onnx_session import session_options

    options = session_options(threads)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


# Ranges: each method gives the largest magnitude that INT8 should hold.


def minmax(activation: Activation) -> float:
    """Nothing is clipped."""
    return activation.peak


def percentile(activation: Activation) -> float:
    """One value in ten thousand is clipped."""
    return float(np.quantile(np.abs(activation.values), 0.9999))


def entropy(activation: Activation) -> float:
    """ONNX Runtime's own: the histogram diverges least from what quantization makes of it (Migacz 2017)."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    peak = activation.peak
    collector = HistogramCollector("entropy", True, BINS, BINS // 8, 99.99, None)
    histogram, edges = np.histogram(activation.values, np.linspace(-peak, peak, BINS + 1))
    low, high = collector.get_entropy_threshold((histogram, edges, -peak, peak, peak), BINS // 8)[:2]
    return float(max(abs(low), abs(high)))


def least_error(activation: Activation) -> float:
    """The squared error is least, of 33 ranges from a fifth of the largest magnitude up."""
    candidates = activation.peak * np.geomspace(0.2, 1, 33)
    return float(min(candidates, key=lambda limit: squared_error(activation, float(limit))))


METHODS: dict[str, Callable[[Activation], float]] = {
    "min-max": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": least_error,
}


def squared_error(activation: Activation, limit: float) -> float:
    """Of quantizing a tensor so that INT8 holds magnitudes up to ``limit``; mean over its values."""
    step = max(limit, 1e-12) / LEVELS
    quantized = np.clip(np.rint(activation.values / step), -LEVELS, LEVELS) * step
    # The samples miss the rarest values: each channel's peak counts as the one place it is.
    overshoot = np.square(np.maximum(activation.peaks - limit, 0)).mean() / activation.places
    return float(np.square(quantized - activation.values).mean() + overshoot)
