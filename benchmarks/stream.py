"""What the pipeline of ``echoir stream`` costs, keeps and promises.

    python benchmarks/stream.py throughput -m echoir-denoise-fp32 --video clip.mp4    beside bench; what was kept
    python benchmarks/stream.py policies --seconds 60                                 a slow model at 30 frames/s
    python benchmarks/stream.py soak --minutes 30                                     memory, losses, order
    python benchmarks/stream.py formats                                               what an identity changes, in codes

The last three need no artifact: they make one that changes nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from builders import make_artifact

from echoir.runtime.restorer import Restorer
from echoir.runtime.streams.pipeline import Latencies

ECHOIR = Path(sys.executable).with_name("echoir")


@click.group()
def main() -> None:
    """See the file's first lines."""


def facts(path: Path) -> dict[str, Any]:
    """Time stamps of the frames in seconds, packets of the sound, colour tags."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        tags = tuple(map(int, (context.colorspace, context.color_range, context.color_primaries, context.color_trc)))
        stamps = [frame.pts * stream.time_base for frame in container.decode(stream) if frame.pts is not None]
    with av.open(str(path)) as container:
        others = container.streams.audio
        sound = [bytes(packet) for packet in container.demux(others) if packet.size] if others else []
    return {"frames": len(stamps), "stamps": stamps, "sound": sound, "tags": tags}


@main.command()
@click.option("-m", "--model", required=True, help="An artifact.")
@click.option("--video", required=True, type=click.Path(path_type=Path))
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--frames", type=int, default=30, show_default=True, help="Of the video that are restored.")
def throughput(model: str, video: Path, threads: int, frames: int) -> None:
    """Time per frame of file to file, beside the frame's tiles at the time that ``echoir bench`` gives for one."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = cut(video, frames, Path(folder)), Path(folder, "out.mp4")
        figures = json.loads(output("bench", "-m", model, "--threads", threads, "--no-profile", "--json", "-"))
        with Restorer.open(model, threads=threads) as restorer:
            tiles, (height, width) = 0, size_of(source)
            tiles = restorer.tiles(height, width)
            image = np.random.default_rng(0).random((height, width, 3), np.float32)
            alone = []
            for _ in range(5):
                start = time.perf_counter()
                restorer(image)
                alone.append(time.perf_counter() - start)
        start = time.perf_counter()
        subprocess.run(
            [str(part) for part in (ECHOIR, "stream", source, target, "-m", model, "--threads", threads, "--log-json")],
            check=True,
            stderr=subprocess.PIPE,
        )
        wall = time.perf_counter() - start
        before, after = facts(source), facts(target)
    whole = before["frames"]
    tile = figures["latency"][0]["tile_ms"]["p50"]
    print(f"{whole} frames of {width} x {height}, {tiles} tiles each, {threads} threads")
    print(f"  echoir bench: {tile:.1f} ms a tile, so {tile * tiles:.0f} ms a frame")
    print(f"  Restorer alone, median of {len(alone)}: {np.median(alone) * 1e3:.0f} ms a frame")
    print(f"  echoir stream, file to file, start included: {wall / whole * 1e3:.0f} ms a frame", end="")
    print(f", {wall / whole * 1e3 / (tile * tiles) - 1:+.1%} on top of bench")
    print(f"  frames: {before['frames']} in, {after['frames']} out")
    print(f"  time stamps equal: {before['stamps'] == after['stamps']}")
    print(f"  sound: {len(before['sound'])} packets, equal: {before['sound'] == after['sound']}")
    print(f"  colour tags equal: {before['tags'] == after['tags']}")


def cut(video: Path, frames: int, folder: Path) -> Path:
    """The first frames of a video, with their sound, as they are."""
    import av

    with av.open(str(video)) as container:
        rate = container.streams.video[0].average_rate or 30
    target = folder / f"cut{video.suffix}"
    command = ["ffmpeg", "-v", "error", "-i", video, "-t", float(frames / rate), "-c", "copy", target]
    subprocess.run([str(part) for part in command], check=True)
    return target


def size_of(video: Path) -> tuple[int, int]:
    import av

    with av.open(str(video)) as container:
        return container.streams.video[0].height, container.streams.video[0].width


def output(*arguments: object) -> str:
    return subprocess.run([str(ECHOIR), *map(str, arguments)], check=True, capture_output=True, text=True).stdout


@main.command()
@click.option("--seconds", type=float, default=60.0, show_default=True)
@click.option("--inference", type=float, default=100.0, show_default=True, help="Milliseconds that the model takes.")
@click.option("--deadline", type=float, default=50.0, show_default=True, help="Milliseconds.")
def policies(seconds: float, inference: float, deadline: float) -> None:
    """A model that is too slow, at 30 frames a second, under each policy: latency, memory, counters."""

    from echoir.runtime.streams.images import ImageStream

    def frames() -> Iterator[np.ndarray[Any, Any]]:
        start, image = time.monotonic(), np.zeros((540, 960, 3), np.uint8)
        for index in range(round(seconds * 30)):
            time.sleep(max(0.0, start + index / 30 - time.monotonic()))
            yield image

    print(f"a model of {inference:.0f} ms and a deadline of {deadline:.0f} ms, {seconds:.0f} s of 30 frames/s")
    for policy in ("pass", "drop", "slow"):
        model = Slow(inference / 1e3)
        stream = ImageStream(model, frames(), deadline / 1e3, policy, None)  # type: ignore[arg-type]
        early = 0
        indices = []
        for frame in stream:
            indices.append(frame.index)
            early = early or (resident() if frame.index > 300 else 0)
        late = resident()
        counters = stream.counters
        whole = counters.frames == counters.restored + counters.passed + counters.dropped
        bound = deadline + model.times.percentile(99) * 1e3
        print(f"  {policy}: {counters}")
        print(f"    p99 within the deadline and one inference ({bound:.1f} ms): ", end="")
        print(f"{counters.latency.percentile(99) * 1e3 <= bound}; counters add up: {whole}; ", end="")
        print(f"in order: {indices == sorted(set(indices))}; memory {late / early - 1:+.2%} since second 10")


class Slow:
    """A model that copies, and takes its time; it says how much it really took."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.times = seconds, Latencies()

    def __call__(self, image: Any, *, out: Any) -> Any:
        start = time.monotonic()
        time.sleep(self.seconds)
        np.copyto(out, image)
        self.times.add(time.monotonic() - start)
        return out


def resident() -> int:
    """Bytes of this process in memory now."""
    return memory_of("self")


def memory_of(process: int | str) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


@main.command()
@click.option("--minutes", type=float, default=30.0, show_default=True)
@click.option("--size", default="96x64", show_default=True)
@click.option("--warmup", type=float, default=60.0, show_default=True, help="Seconds before memory is compared.")
def soak(minutes: float, size: str, warmup: float) -> None:
    """``echoir stream`` on numbered frames at 30 a second: every one comes out, in order, in flat memory."""
    width, height = (int(side) for side in size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        model = make_artifact(Path(folder), "identity").model_path
        arguments = ["-", "-", "-m", model, "--size", size, "--pixel-format", "nv12", "--threads", 1, "--quiet"]
        process = subprocess.Popen(
            [str(part) for part in (ECHOIR, "stream", *arguments, "--deadline", 5000)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        frame = bytearray(width * height * 3 // 2)
        sent = wrong = 0
        first, start = 0, time.monotonic()
        while (now := time.monotonic() - start) < minutes * 60:
            frame[:8] = sent.to_bytes(8, "little")
            process.stdin.write(frame)
            process.stdin.flush()
            wrong += process.stdout.read(len(frame)) != frame
            sent += 1
            if not first and now > warmup:
                first = memory_of(process.pid)
            if sent % 9000 == 0:
                print(f"{now / 60:.1f} min: {sent} frames, {wrong} wrong, {memory_of(process.pid) / 2**20:.2f} MiB")
            time.sleep(max(0.0, start + sent / 30 - time.monotonic()))
        last = memory_of(process.pid)
        process.stdin.close()
        rest = process.stdout.read()
        code = process.wait()
    print(f"{sent} frames in {minutes:g} min: {wrong} lost, changed or out of order, {len(rest)} bytes too many")
    print(f"exit code {code}; memory {first / 2**20:.2f} MiB after {warmup:.0f} s, {last / 2**20:.2f} MiB at the end")
    print(f"growth {last / first - 1:+.2%}")


@main.command()
@click.option("--size", default="961x541", show_default=True)
def formats(size: str) -> None:
    """The largest change, in code values, that an identity model makes to random frames of every format."""
    from echoir.runtime.streams.conversion import Converter
    from echoir.runtime.streams.pixels import FORMATS, Colour

    width, height = (int(side) for side in size.split("x"))
    rng = np.random.default_rng(0)
    for name, format in FORMATS.items():
        planes = [
            rng.integers(0, format.peak, shape, format.dtype, endpoint=True) << format.shift
            for shape in format.shapes(height, width)
        ]
        worst, milliseconds = 0, []
        for eight_bit in (False, True):
            converter, out = (
                Converter(format, height, width, Colour(), eight_bit=eight_bit),
                format.empty(height, width),
            )
            for _ in range(3):
                start = time.perf_counter()
                image = converter.image(planes)
                converter.restore([image], planes, out)
                milliseconds.append((time.perf_counter() - start) * 1e3)
            for a, b in zip(*(format.components(p, height, width) for p in (planes, out)), strict=True):
                worst = max(worst, int(np.abs((a >> format.shift).astype(int) - (b >> format.shift)).max()))
        print(f"{name:<14} {worst} codes, {min(milliseconds):.1f} ms for both ways")


if __name__ == "__main__":
    main()
