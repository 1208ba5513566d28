"""A capture loop of your own around ``Restorer.stream``: frames with their times, a deadline, counters at the end.

    python examples/capture_loop.py echoir-denoise-fp32 /dev/video0 --deadline 50
    python examples/capture_loop.py echoir-denoise-fp32 clip.mp4 --frames 20

PyAV (``pip install '.[video]'``) stands for whatever gives you frames; OpenCV's frames need ``colour="BGR"``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice

import av

from echoir.runtime import Frame, Restorer


def camera(name: str) -> Iterator[Frame]:
    """Frames as they come; this runs on a thread of its own."""
    device = name.startswith("/dev/")
    with av.open(name, format="video4linux2" if device else None) as container:
        for frame in container.decode(video=0):
            yield Frame(frame.to_ndarray(format="rgb24"), time=frame.time)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact")
    parser.add_argument("source", help="a V4L2 device or a video file")
    parser.add_argument("--deadline", type=float, help="milliseconds; frames that wait for longer pass unrestored")
    parser.add_argument("--frames", type=int, default=100)
    options = parser.parse_args()
    with Restorer.open(options.artifact) as restorer:
        deadline = options.deadline and options.deadline / 1e3
        stream = restorer.stream(islice(camera(options.source), options.frames), deadline=deadline)
        for frame in stream:
            # frame.image is yours until the next frame is taken.
            what = "restored" if frame.restored else "as it came"
            print(f"{frame.time:.3f} s: {what}, mean {frame.image.mean():.1f}, after {frame.latency * 1e3:.0f} ms")
        print(stream.counters)


if __name__ == "__main__":
    main()
