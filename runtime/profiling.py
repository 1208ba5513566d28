"""Where a session's time goes: shares of operators, of the network's modules, and of its own functions."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from echoir.runtime.artifact import Artifact
from echoir.runtime.onnx_session import model_source, session_options

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Profile:
    """Shares of the time spent inside operators, 0 to 1.

    Args:
        milliseconds: per run, all operators together.
        operators: by operator type, largest first.
        modules: by outermost module of the network, largest first, as far as the names of nodes tell.
        functions: by operator of the network's own, within the modules.
    """

    milliseconds: float
    operators: dict[str, float]
    modules: dict[str, float] = field(default_factory=dict)
    functions: dict[str, float] = field(default_factory=dict)


def profile_onnxruntime(artifact: Artifact, tiles: Array, threads: int, runs: int = 5) -> Profile:
    """Where ONNX Runtime spends its time, by its own profiler, after one run that is not counted.

    Args:
        tiles: of a run, in the input's layout and type; as many of them as the artifact's batch, where that is fixed.
    """
    import onnxruntime

    if artifact.manifest.tile.batch is not None:
        tiles = np.resize(tiles, (artifact.manifest.tile.batch, *tiles.shape[1:]))

    options = session_options(threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            model_source(artifact.model_path), options, providers=["CPUExecutionProvider"]
        )
        for _ in range(runs + 1):
            session.run(None, {artifact.manifest.input.name: tiles})
        events = json.loads(Path(session.end_profiling()).read_text())
    return summarise(after_first_run(events), runs)


def after_first_run(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The profiler's operator events but for those of the first, unrepresentative run."""
    runs = sorted((e for e in events if e.get("name") == "model_run"), key=lambda e: e["ts"])
    first_end = runs[0]["ts"] + runs[0]["dur"]
    return [e for e in events if str(e.get("name")).endswith("_kernel_time") and e["ts"] >= first_end]


def summarise(events: Iterable[dict[str, Any]], runs: int) -> Profile:
    """Add up the profiler's operator events by operator type, by module and by function."""
    operators: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for event, (module, function) in attribute(sorted(events, key=lambda e: e["ts"])):
        operators[event["args"]["op_name"]] += event["dur"]
        if module:
            modules[module] += event["dur"]
        if function:
            functions[function] += event["dur"]
    total = max(operators.total(), 1)
    shares = ({name: micros / total for name, micros in part.most_common()} for part in (operators, modules, functions))
    return Profile(operators.total() / 1e3 / runs, *shares)


def attribute(events: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], tuple[str, str]]]:
    """Find each operator event's module, and the function that it is part of.

    Exported nodes are named by module (``up1/reduce/Conv``). ONNX Runtime inlines functions under names
    without the module (``_inlfunc_NAME_...``), which run between that module's own nodes; and it
    inserts nodes that change layout or type: one before the node that needs it, or after the node
    whose result it changes back.

    Args:
        events: in the order they ran.

    Returns:
        With each event ``(outermost module, function)``; either may be empty.
    """
    owners: list[tuple[str, str] | None] = []
    module = ""
    for event in events:
        name, kind = event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]
        if inlined := re.match(r"_inlfunc_([^_]+)_", name):
            owners.append((module, inlined[1]))
        elif "/" in name:
            module = name.strip("/").split("/")[0]
            owners.append((module, ""))
        elif kind == "ReorderInput":
            owners.append(None)
        elif kind == "ReorderOutput" or "_token_" in name or kind == "Cast":
            owners.append(owners[-1] if owners else ("", ""))
        else:
            owners.append(("", ""))
    after: tuple[str, str] = ("", "")
    found = []
    for event, owner in zip(reversed(events), reversed(owners), strict=True):
        after = after if owner is None else owner
        found.append((event, after))
    return found[::-1]
