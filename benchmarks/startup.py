"""How long `echoir restore` of one small picture takes, and what of it: with nothing kept, and with what is kept.

    python benchmarks/startup.py -m ARTIFACT PICTURE [--turns 10] [--threads 1]

Whole processes in turns, with an empty cache each time and with one that is filled: least and median of wall seconds.
Then the parts in a process of its own, with the filled cache: imports, opening the model, restoring, in milliseconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PARTS = """
import sys, time
marks = [time.perf_counter()]
import echoir.cli, echoir.runtime.commands, echoir.runtime.jobs, onnxruntime
marks.append(time.perf_counter())
from echoir.runtime.restorer import Restorer
from echoir.runtime.images import open_picture
restorer = Restorer.open(sys.argv[1], threads=int(sys.argv[3]))
marks.append(time.perf_counter())
picture = open_picture(sys.argv[2])
marks.append(time.perf_counter())
restorer(picture.rgb)
marks.append(time.perf_counter())
print(*(1e3 * (b - a) for a, b in zip(marks, marks[1:])))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    model, picture = os.path.abspath(options.model), options.picture.absolute()
    with tempfile.TemporaryDirectory() as folder:
        kept, taken = Path(folder, "kept"), dict[str, list[float]]()

        def run(name: str, cache: Path) -> None:
            target = Path(folder, f"out{picture.suffix}")
            target.unlink(missing_ok=True)
            command = [Path(sys.executable).with_name("echoir"), "restore", picture, "-m", model, "-o", target]
            command += ["--threads", options.threads, "--quiet"]
            begun = time.perf_counter()
            environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
            subprocess.run([*map(str, command)], check=True, cwd=folder, env=environment)
            taken.setdefault(name, []).append(time.perf_counter() - begun)

        run("first", kept)
        for turn in range(options.turns):
            run("nothing kept", Path(folder, f"empty{turn}"))
            run("kept", kept)
        print(f"| {options.turns} turns | least s | median s |\n|---|---|---|")
        for name in ("nothing kept", "kept"):
            print(f"| {name} | {min(taken[name]):.3f} | {np.median(taken[name]):.3f} |")
        quotients = np.divide(taken["kept"], taken["nothing kept"])
        print(f"kept takes {np.median(quotients):.2f} times as long (median of turns)\n")
        command = [sys.executable, "-c", PARTS, model, str(picture), str(options.threads)]
        parts = []
        for _ in range(options.turns):
            environment = os.environ | {"XDG_CACHE_HOME": str(kept)}
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, env=environment)
            parts.append([float(number) for number in done.stdout.split()])
        least = np.min(parts, axis=0)
        for name, part in zip(("imports", "opening the model", "decoding", "restoring"), least, strict=True):
            print(f"{name:<20}{part:>8.0f} ms")


if __name__ == "__main__":
    main()
