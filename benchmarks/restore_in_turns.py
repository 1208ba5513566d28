"""Is `restore` of small pictures as fast as before? Two installations, run in turns.

    python benchmarks/restore_in_turns.py -m ARTIFACT --before PATH --after PATH PICTURES [--turns 10]

PATH is a folder to import echoir from (`pip install --no-deps --target PATH .` in a checkout of each). A run is a
process that restores all pictures twice and times the second time, so that start and warm-up do not count. Of the runs
of each, the least wall and processor seconds are printed, and their ratio: on a busy machine the least says most.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RUN = """
import json, sys, time
model, out, *pictures = sys.argv[1:]
from echoir.runtime.restorer import Restorer
from echoir.runtime.{jobs} import Report, plan, restore
with Restorer.open(model, threads=1) as restorer:
    for turn in range(2):
        begun = time.perf_counter(), time.process_time()
        report = Report()
        restore(restorer, plan(pictures, out)[0], report, exists="overwrite", quiet=True)
        taken = time.perf_counter() - begun[0], time.process_time() - begun[1]
assert not report.failed, report.failed
print(json.dumps([*taken, len(report.restored)]))
"""


def once(package: Path, arguments: list[str]) -> tuple[float, float, int]:
    jobs = "jobs" if (package / "echoir/runtime/jobs.py").exists() else "restore"
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-c", RUN.format(jobs=jobs), arguments[0], out, *arguments[1:]]
        environment = os.environ | {"PYTHONPATH": str(package)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=out)
    wall, processor, count = json.loads(done.stdout)
    return wall, processor, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--after", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("pictures", nargs="+")
    options = parser.parse_args()
    arguments = [os.path.abspath(path) for path in (options.model, *options.pictures)]
    runs: dict[Path, list[tuple[float, float, int]]] = {options.before.resolve(): [], options.after.resolve(): []}
    for _ in range(options.turns):
        for package, taken in runs.items():
            taken.append(once(package, arguments))
    (before, after) = ([min(column) for column in zip(*taken, strict=True)] for taken in runs.values())
    print(f"{before[2]} pictures, least of {options.turns} turns, before / after / ratio")
    for name, old, new in (("wall s", before[0], after[0]), ("processor s", before[1], after[1])):
        print(f"{name:<12} {old:.4f} {new:.4f} {new / old:.3f}")


if __name__ == "__main__":
    main()
