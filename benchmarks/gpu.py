"""Everything that waits for a GPU, in steps: each with a time limit and a log, results written as they come.

    python benchmarks/gpu.py checks  [-o FOLDER]    is all of it right? About a minute; other programs may use the GPU
    python benchmarks/gpu.py networks [-o FOLDER]   are whole networks right, compiled too? Two minutes, likewise
    python benchmarks/gpu.py timings [-o FOLDER]    how fast is it? About two minutes; the GPU must be idle otherwise
    python benchmarks/gpu.py engines [-o FOLDER]    engines, where TensorRT or TensorRT-RTX is installed; many minutes
    python benchmarks/gpu.py checks networks timings --rehearse    the same code without a GPU, as far as that goes

Needs no network. Steps of ``checks`` and ``networks`` run side by side: most of their time is compiling. A step that
fails, or runs out of time, stops no other; one whose library is missing is named. FOLDER (``benchmarks/results/GPU``)
gets ``summary.md``, ``results.json`` with the figures that the steps print as lines of JSON, and ``logs/STEP.log``.
The exit code is 1 when a step that ran failed. ``bash benchmarks/gpu.sh`` installs what is needed first.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"
PRESETS = ("tiny", "small", "base")
PROBE = "import torch; assert torch.cuda.is_available(); print(torch.cuda.get_device_name())"


@dataclass(frozen=True)
class Step:
    """A command.

    Attributes:
        limit: seconds after which it is stopped.
        needs: modules without which it is left out.
    """

    name: str
    command: list[str]
    limit: float
    needs: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Result:
    """What became of a step."""

    step: str
    status: str
    seconds: float = 0.0
    last_line: str = ""
    figures: list[Any] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return self.status.startswith("FAILED")


def pytest(file: str, *options: str) -> list[str]:
    """A run of tests. A warning of a newer library is no reason to fail here, as it is elsewhere."""
    settings = HERE.parent / "pyproject.toml"
    return [
        *(sys.executable, "-m", "pytest", "-c", str(settings), "-p", "no:cacheprovider", "-W", "default", "-s"),
        *(*options, str(TESTS / file)),
    ]


def benchmark(file: str, *options: str, rehearse: bool) -> list[str]:
    return [sys.executable, str(HERE / file), *options, *(["--rehearse"] if rehearse else [])]


def checks(output: Path, rehearse: bool) -> Iterator[Step]:
    """Correctness: what takes longest comes first."""
    where, cpu = ("pretended", "cpu") if rehearse else ("cuda", "cuda")
    marked = [] if rehearse else ["-m", "gpu"]
    interpreted = {"TRITON_INTERPRET": "1"} if rehearse else {}
    for name, which in {
        "float64": "float64 and not finite",
        "float32": "float32",
        "float16": "float16 and not bfloat16",
        "bfloat16": "bfloat16",
        "edges": "wide or finite or far or tilings or operators",
    }.items():
        yield Step(f"kernel-{name}", pytest("kernel_checks.py", "-k", which), 200, ("triton",), interpreted)
    for preset in reversed(PRESETS):
        command = benchmark("kernel.py", "--errors", "--presets", preset, "-o", str(output), rehearse=rehearse)
        yield Step(f"kernel-{preset}", command, 150, ("triton",))
    tests = f"{cpu} and not match_the_reference" if rehearse else "not match_the_reference"
    yield Step("operator", pytest("test_kernel.py", *marked, "-k", tests), 150, ("triton",))
    which = f"{where} and not engine_restores" if rehearse else "not engine_restores"
    needs = () if rehearse else ("pycuda",)
    yield Step("session", pytest("test_gpu.py", *marked, "-k", which), 150, needs)


def networks(output: Path, rehearse: bool) -> Iterator[Step]:
    """Correctness of whole networks, eager and compiled: minutes of compiling, which the times then find done."""
    for preset in reversed(PRESETS):
        command = benchmark("networks.py", "--errors", "--presets", preset, "--seconds", "120", rehearse=rehearse)
        yield Step(f"network-{preset}", command, 240)


def timings(output: Path, rehearse: bool) -> Iterator[Step]:
    """Speed: one after the other."""
    to = ["-o", str(output)]
    yield Step("time-kernel", benchmark("kernel.py", "--seconds", "50", *to, rehearse=rehearse), 80, ("triton",))
    needs = () if rehearse else ("pycuda",)
    yield Step("time-session", benchmark("session.py", *to, rehearse=rehearse), 60, needs)
    yield Step("time-networks", benchmark("networks.py", "--seconds", "60", *to, rehearse=rehearse), 100)


def engines(output: Path, rehearse: bool) -> Iterator[Step]:
    """What needs TensorRT, and so cannot be rehearsed: tests, comparisons, a whole export, trtexec alone."""
    if rehearse:
        return
    echoir = shutil.which("echoir") or str(Path(sys.executable).with_name("echoir"))
    for target in ("tensorrt", "tensorrt-rtx"):
        needs = (target.replace("-", "_"), "pycuda")
        engine = output / "engines" / target / f"denoise-fp16-{target}.engine"
        tests = pytest("test_gpu.py", "-m", "gpu", "-k", f"engine_restores and {target}-{needs[0]}")
        yield Step(f"{target}-tests", tests, 1800, needs)
        command = benchmark("gpu_engines.py", "--target", target, "-o", str(output / f"{target}.md"), rehearse=False)
        yield Step(target, command, 1800, needs)
        export = [echoir, "export", "--precision", "fp16", "--target", target, "-o", str(engine.parent)]
        yield Step(f"{target}-export", export, 1800, needs)
        yield Step(f"{target}-parity", [echoir, "parity", "-m", str(engine)], 1800, needs)
        yield Step(f"{target}-bench", [echoir, "bench", "-m", str(engine), "--against", "pytorch"], 1800, needs)
        if target == "tensorrt":
            # An engine that holds its plugin's code loads where there is neither Python nor this project.
            trtexec = "PATH=$PATH:/usr/src/tensorrt/bin trtexec"
            onnx = engine.with_name("denoise-fp16.onnx")
            loaded = ["sh", "-c", f"{trtexec} --loadEngine={engine} --iterations=100"]
            yield Step("trtexec-engine", loaded, 1800, needs)
            yield Step("trtexec-onnx", ["sh", "-c", f"{trtexec} --onnx={onnx} --stronglyTyped"], 1800, needs)


SIDE_BY_SIDE = ("checks", "networks")
PARTS = {"checks": checks, "networks": networks, "timings": timings, "engines": engines}


class Report:
    """The results so far, on disk."""

    def __init__(self, output: Path, title: str) -> None:
        self._output, self._title = output, title
        self.results: list[Result] = []
        self._lock = Lock()

    def add(self, result: Result) -> None:
        """Write it down, with those before."""
        with self._lock:
            self.results.append(result)
            print(f"{result.step}: {result.status}, {result.seconds:.0f} s; {result.last_line}", flush=True)
            lines = [f"# {self._title}", "", "| step | result | seconds | last line |", "|---|---|---|---|"]
            for done in self.results:
                last = done.last_line.replace("|", " ")
                lines.append(f"| {done.step} | {done.status} | {done.seconds:.0f} | {last} |")
            (self._output / "summary.md").write_text("\n".join(lines) + "\n")
            record = {"title": self._title, "steps": [asdict(done) for done in self.results]}
            (self._output / "results.json").write_text(json.dumps(record, indent=1) + "\n")


def run(step: Step, logs: Path, end: float, waiting_for: Path | None) -> Result:
    """Run a step to its end, its limit, or the end of all time there is."""
    if waiting_for is not None and "pycuda" in step.needs:
        while waiting_for.exists() and time.monotonic() < end:
            time.sleep(0.5)
    missing = [module for module in step.needs if find_spec(module) is None]
    if missing:
        return Result(step.name, f"skipped: no {', '.join(missing)}")
    begun, limit = time.monotonic(), min(step.limit, end - time.monotonic())
    if limit <= 0:
        return Result(step.name, "skipped: no time left")
    path = logs / f"{step.name}.log"
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONUNBUFFERED": "1", **step.env}
    with path.open("w") as log, tempfile.TemporaryDirectory() as elsewhere:
        # The folder echoir/ of the repository would hide the package.
        process = subprocess.Popen(
            step.command, stdout=log, stderr=subprocess.STDOUT, cwd=elsewhere, env=env, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    status = (
        "passed" if code == 0 else f"FAILED: not done in {limit:.0f} s" if code is None else f"FAILED: exit code {code}"
    )
    if code == 5 and "pytest" in step.command:
        status = "skipped: no such tests here"
    last = next((line for line in reversed(lines) if not line.startswith(("{", "|"))), "")
    return Result(step.name, status, time.monotonic() - begun, last[-200:], list(figures(lines)))


def figures(lines: list[str]) -> Iterator[Any]:
    """The lines that are JSON objects; pytest may have put a dot before one."""
    for line in lines:
        found = re.search(r"\{\".*\}$", line)
        if found:
            try:
                yield json.loads(found[0])
            except ValueError:
                continue


def device() -> str | None:
    """The GPU's name; None without one, or without a PyTorch that can use it."""
    try:
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120, cwd="/")
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def describe(logs: Path) -> None:
    """What machine this is."""
    packages = "torch|triton|tensorrt|pycuda|cuda|numpy|onnx|echoir|hypothesis|pytest"
    text = f"nvidia-smi; {sys.executable} --version; {sys.executable} -m pip list 2>/dev/null | grep -iE '{packages}'"
    with (logs / "machine.txt").open("w") as file:
        subprocess.run(["sh", "-c", text], stdout=file, stderr=subprocess.STDOUT, timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rehearse", action="store_true", help="on a processor: shows that the steps work, no more")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for everything; what is left is stopped")
    parser.add_argument("--jobs", type=int, default=max(1, 3 * (os.cpu_count() or 1) // 4), help="checks side by side")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    parser.add_argument("--waiting-for", type=Path, metavar="FILE", help="PyCUDA is being built while this exists")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    name = "rehearsal" if options.rehearse else device()
    label = re.sub(r"[^a-z0-9]+", "-", (name or "no-gpu").lower())
    output = (options.output or HERE / "results" / label).resolve()
    logs = output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    report = Report(output, f"{name or 'no GPU'}, {' and '.join(options.parts)}, {time.strftime('%Y-%m-%d')}")
    for part in options.parts:
        steps = [s for s in PARTS[part](output, options.rehearse) if not options.only or s.name in options.only]
        if name is None:
            for step in steps:
                report.add(Result(step.name, "skipped: no CUDA"))
            continue
        with ThreadPoolExecutor(options.jobs if part in SIDE_BY_SIDE else 1) as pool:
            for done in as_completed([pool.submit(run, step, logs, end, options.waiting_for) for step in steps]):
                report.add(done.result())
    describe(logs)
    print((output / "summary.md").read_text())
    sys.exit(any(result.failed for result in report.results))


if __name__ == "__main__":
    main()
