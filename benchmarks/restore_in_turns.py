"""Is `restore` as fast as before? Two installations, or two artifacts, run in turns.

    python benchmarks/restore_in_turns.py -m ARTIFACT --before PATH --after PATH PICTURES [--turns 10]
    python benchmarks/restore_in_turns.py -m ARTIFACT --model-before ARTIFACT [--device auto] PICTURES
    python benchmarks/restore_in_turns.py -m ARTIFACT --model-before ARTIFACT [--device auto] --megapixels 12

PATH is a folder to import echoir from (`pip install --no-deps --target PATH .` in a checkout of each). A run is a
process that restores all pictures twice and times the second time, so that start and warm-up do not count. Of the runs
of each, the least wall and processor seconds are printed, and their ratio: on a busy machine the least says most.
Without paths both run what is installed here; ``--megapixels`` makes a JPEG, a shipped picture mirrored side by side.
Then the shares of decoding, restoring and encoding, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from memory import make_photograph

RUN = """
import json, sys, time
model, out, device, *pictures = sys.argv[1:]
from echoir.runtime.restorer import Restorer
from echoir.runtime.{jobs} import Report, restore
from echoir.runtime.{plans} import plan
with Restorer.open(model, threads=1, device=device) as restorer:
    for turn in range(2):
        begun = time.perf_counter(), time.process_time()
        report = Report()
        restore(restorer, plan(pictures, out)[0], report, exists="overwrite", quiet=True)
        taken = time.perf_counter() - begun[0], time.process_time() - begun[1]
assert not report.failed, report.failed
print(json.dumps([*taken, len(report.restored)]))
"""


SHARES = """
import sys, time
model, out, device, *pictures = sys.argv[1:]
import numpy as np
from echoir.runtime.images import open_picture, save_picture
from echoir.runtime.plans import plan
from echoir.runtime.restorer import Restorer
pictures = [str(job.source) for job in plan(pictures, out)[0]]
spent = np.zeros(3)
with Restorer.open(model, threads=1, device=device) as restorer:
    for turn in range(2):
        spent[:] = 0
        for path in pictures:
            marks = [time.perf_counter()]
            picture = open_picture(path)
            marks.append(time.perf_counter())
            rows = list(restorer.strips(picture.read_rows, picture.height, picture.width))
            marks.append(time.perf_counter())
            save_picture(out + "/" + path.rsplit("/", 1)[-1], rows, picture)
            marks.append(time.perf_counter())
            spent += np.diff(marks)
names = "decode", "restore", "encode"
print(*(f"{name} {part:.3f} s ({part / spent.sum():.1%})" for name, part in zip(names, spent)), sep=", ")
"""


@dataclass(frozen=True)
class Side:
    """What is compared: an installation (None: the one here), an artifact, and what runs it."""

    package: Path | None
    model: str
    device: str

    def run(self, code: str, pictures: list[str]) -> str:
        """What a process prints that does it."""
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-c", code, self.model, out, self.device, *pictures]
            environment = os.environ | ({} if self.package is None else {"PYTHONPATH": str(self.package)})
            return subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=out).stdout


def once(side: Side, pictures: list[str]) -> tuple[float, float, int]:
    def there(name: str) -> bool:
        return side.package is None or (side.package / f"echoir/runtime/{name}.py").exists()

    jobs = "jobs" if there("jobs") else "restore"
    code = RUN.format(jobs=jobs, plans="plans" if there("plans") else jobs)
    wall, processor, count = json.loads(side.run(code, pictures))
    return wall, processor, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--model-before", help="another artifact of the same network [default: the same one]")
    parser.add_argument("--before", type=Path)
    parser.add_argument("--after", type=Path)
    parser.add_argument("--device", default="cpu", help="of what is after")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--megapixels", type=float, help="a picture of so many, made for the purpose")
    parser.add_argument("pictures", nargs="*")
    options = parser.parse_args()
    if not options.pictures and options.megapixels is None:
        parser.error("give pictures, or --megapixels")
    with tempfile.TemporaryDirectory() as folder:
        pictures = [os.path.abspath(path) for path in options.pictures]
        if options.megapixels is not None:
            pictures.append(os.path.join(folder, "made.jpg"))
            make_photograph(options.megapixels, Path(pictures[-1]))
        compare(options, pictures)


def compare(options: argparse.Namespace, pictures: list[str]) -> None:
    """Run both sides in turns, and print."""
    model, model_before = (os.path.abspath(path) for path in (options.model, options.model_before or options.model))
    paths = [path and path.resolve() for path in (options.before, options.after)]
    sides = Side(paths[0], model_before, "cpu"), Side(paths[1], model, options.device)
    runs: dict[Side, list[tuple[float, float, int]]] = {side: [] for side in sides}
    for _ in range(options.turns):
        for side, taken in runs.items():
            taken.append(once(side, pictures))
    (before, after) = ([min(column) for column in zip(*taken, strict=True)] for taken in runs.values())
    print(f"{before[2]} pictures, least of {options.turns} turns, before / after / ratio")
    for name, old, new in (("wall s", before[0], after[0]), ("processor s", before[1], after[1])):
        print(f"{name:<12} {old:.4f} {new:.4f} {new / old:.3f}")
    print("of the one after:", sides[1].run(SHARES, pictures).strip())


if __name__ == "__main__":
    main()
