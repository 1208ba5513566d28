"""What a pixel costs in ONNX Runtime with sides free, fixed by name, and fixed in the file: operator by operator.

    python benchmarks/free_sides.py --free ARTIFACT --fixed ARTIFACT [--sizes 256x256 352x512] [--turns 6]
    python benchmarks/free_sides.py --free ARTIFACT --fixed ARTIFACT --options
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/free_sides.py ...

``--free`` was exported with ``--tile free``, ``--fixed`` with a tile of its own. Rows: the fixed model at its tile, and
for each size the free model as it is, with its sides set by ``add_free_dimension_override_by_name``, and that with
planned memory. All sessions take turns; least of them, nanoseconds of processor time a pixel, one thread. Then the
operators of the fixed model and of the free one at the first size. The second line tries options of ONNX Runtime on the
fixed model instead. The third gives memory in pages of 2 MB (glibc 2.35 and later; Linux with transparent huge pages at
``madvise`` or ``always``).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from echoir.runtime.artifact import Artifact
from echoir.runtime.onnx_session import session_options

Sides = tuple[int, int]
OPTIONS = {
    "denormals are zero": {"session.set_denormal_as_zero": "1"},
    "threads spin": {"session.intra_op.allow_spinning": "1"},
    "weights are not packed": {"session.disable_prepacking": "1"},
}


def opened(
    artifact: Artifact,
    sides: Sides | None = None,
    *,
    planned: bool = False,
    arena: bool = True,
    profile: bool = False,
    entries: Mapping[str, str] = {},
) -> onnxruntime.InferenceSession:
    """A session of one thread; ``sides`` are set in place of free ones, ``entries`` are of its configuration."""
    options = session_options(1)
    options.enable_mem_pattern, options.enable_cpu_mem_arena = planned, arena
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, "free_sides"
    if sides is not None:
        free = onnxruntime.InferenceSession(str(artifact.model_path), providers=["CPUExecutionProvider"])
        names = [name for name in free.get_inputs()[0].shape if isinstance(name, str)]
        for name, side in zip(names[-2:], sides, strict=True):
            options.add_free_dimension_override_by_name(name, side)
    return onnxruntime.InferenceSession(str(artifact.model_path), options, providers=["CPUExecutionProvider"])


def spent(session: onnxruntime.InferenceSession, sides: Sides) -> float:
    """Nanoseconds of processor time a pixel, once, on noise."""
    noise = np.random.default_rng(0).random((1, 3, *sides), np.float32)
    begun = time.process_time()
    session.run(None, {session.get_inputs()[0].name: noise})
    return 1e9 * (time.process_time() - begun) / (sides[0] * sides[1])


def operators(artifact: Artifact, sides: Sides, turns: int) -> Counter[str]:
    """Nanoseconds a pixel by operator, the mean of the runs after the first."""
    session = opened(artifact, profile=True)
    for _ in range(turns + 1):
        spent(session, sides)
    written = Path(session.end_profiling())
    events = [e for e in json.loads(written.read_text()) if e.get("cat") == "Node" and "op_name" in e["args"]]
    written.unlink()
    sums: Counter[str] = Counter()
    for event in events[len(events) // (turns + 1) :]:
        sums[event["args"]["op_name"]] += 1e3 * event["dur"] / (turns * sides[0] * sides[1])
    return sums


def pair(text: str) -> Sides:
    """``"HEIGHTxWIDTH"``."""
    height, width = map(int, text.split("x"))
    return height, width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--free", required=True)
    parser.add_argument("--fixed", required=True)
    parser.add_argument("--sizes", type=pair, nargs="+", default=[(256, 256), (352, 512), (512, 512)], metavar="HxW")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--options", action="store_true", help="options of ONNX Runtime, on the fixed model")
    options = parser.parse_args()
    free, fixed = Artifact.open(options.free), Artifact.open(options.fixed)
    tile = fixed.manifest.tile.height, fixed.manifest.tile.width
    subjects = {("fixed in the file", tile): opened(fixed)}
    if options.options:
        subjects["planned memory", tile] = opened(fixed, planned=True)
        subjects["no arena", tile] = opened(fixed, arena=False)
        subjects |= {(name, tile): opened(fixed, entries=entries) for name, entries in OPTIONS.items()}
    for sides in [] if options.options else options.sizes:
        subjects["free", sides] = opened(free)
        subjects["set by name", sides] = opened(free, sides)
        subjects["set by name, planned memory", sides] = opened(free, sides, planned=True)
    taken: dict[tuple[str, Sides], list[float]] = {name: [] for name in subjects}
    for _ in range(options.turns):
        for name, session in subjects.items():
            taken[name].append(spent(session, name[1]))
    base = np.array(taken["fixed in the file", tile])
    print(f"GLIBC_TUNABLES={os.environ.get('GLIBC_TUNABLES', '')}")
    print("| sides | tile | ns a pixel, least | median | to the fixed tile, median of turns |\n|---|---|---|---|---|")
    for (name, sides), seconds in taken.items():
        quotient = np.median(np.array(seconds)[1:] / base[1:])
        print(
            f"| {name} | {sides[0]} x {sides[1]} | {min(seconds):.0f} | {np.median(seconds):.0f} | {quotient:.2f} |",
            flush=True,
        )
    if options.options:
        return
    subjects.clear()
    first = operators(fixed, tile, options.turns), operators(free, options.sizes[0], options.turns)
    print(f"\n| operator | fixed {tile[0]} x {tile[1]} | free {options.sizes[0][0]} x {options.sizes[0][1]} |")
    print("|---|---|---|")
    for name, _ in (first[0] | first[1]).most_common(12):
        print(f"| {name} | {first[0][name]:.0f} | {first[1][name]:.0f} |")
    print(f"| all | {first[0].total():.0f} | {first[1].total():.0f} |")


if __name__ == "__main__":
    main()
