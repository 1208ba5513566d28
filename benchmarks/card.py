"""Every figure of the model card (``echoir/weights/README.md``), as rows of its tables.

    python benchmarks/card.py --data DIR [--only noise clean rain cameras blur sharp video] [--limit N]
        [--before FOLDER] [--ffdnet FFDNet_color.mat]

DIR (or the environment variable ECHOIR_DATA) holds ``denoise/cbsd68``, ``derain/rain100l_test``, ``realnoise/cc15``,
``deblur/gopro6``, ``clean/cid22`` and ``video/mdn_flower_960x540.mp4``. FOLDER holds other checkpoints of the same
names, which get a column before. FFDNet (``ffdnet.py``) is told the noise level, and 8 for every picture of a camera.

PSNR in dB of 8-bit images, means over whole pictures, PyTorch float32; rain on the Y channel. Video goes through
FFmpeg, ``echoir stream`` and an FP32 artifact in ONNX Runtime, and is compared in RGB as FFmpeg converts it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echoir.checkpoint import SHIPPED, load_checkpoint
from echoir.data import Picture, list_pictures, read_float
from echoir.degradations import TASKS
from echoir.evaluate import restore_whole
from echoir.export.pipeline import export_artifact
from echoir.export.request import Request
from echoir.forms import FORMS
from echoir.metrics import luma, psnr, to_8bit
from echoir.samples import Samples, noisy_samples, open_samples

Pixels = NDArray[np.float32]
Restore = Callable[[Pixels], Pixels]
LEVELS = [("rgb", 15.0), ("rgb", 25.0), ("rgb", 50.0), ("clipped", 25.0), ("clipped", 50.0)]
LEVELS += [(form, 25.0) for form in FORMS if form not in ("rgb", "clipped", "clean")]
SIDE, LEFT, TOP, FRAMES = 256, 300, 100, 24  # of the clip
NOISE = "noise=alls=30:allf=t"
ECHOIR = Path(sys.executable).with_name("echoir")


class Card:
    """Where pictures and checkpoints are, and one row of a table after another."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.data, self.limit = Path(options.data), options.limit
        self.folders = {"before": options.before} if options.before else {}
        self.folders["now"] = options.weights
        self.ffdnet = None
        if options.ffdnet:
            from ffdnet import FFDNet

            self.ffdnet = FFDNet(options.ffdnet)

    def checkpoints(self, task: str) -> dict[str, Path]:
        """Those that are there: ``deblur``, for one, is not shipped."""
        paths = {name: folder / f"{task}.safetensors" for name, folder in self.folders.items()}
        return {name: path for name, path in paths.items() if path.is_file()}

    def networks(self, task: str, sigma: float | None = None) -> dict[str, Restore]:
        """What restores, by column."""
        columns: dict[str, Restore] = {
            name: partial(restore_whole, load_checkpoint(path).network) for name, path in self.checkpoints(task).items()
        }
        if self.ffdnet is not None and sigma is not None:
            columns["FFDNet"] = partial(self.ffdnet.restore, sigma=sigma)
        return columns

    def noise(self) -> None:
        """CBSD68, form by form."""
        clean = tuple(list_pictures([self.data / "denoise" / "cbsd68"])[: self.limit])
        for form, sigma in LEVELS:
            samples = noisy_samples(clean, form, sigma)
            self.row(f"CBSD68 {form} {sigma:g}", samples, self.networks("denoise", sigma), worst=False)

    def clean(self) -> None:
        """Clean pictures must come back as they were: the worst of CBSD68, and of 40 of CID22, saturated ones first."""
        saturated = sorted((self.data / "clean" / "cid22").glob("*.webp"))
        others = sorted(set((self.data / "clean" / "cid22").iterdir()) - set(saturated))
        cid22 = tuple(Picture(path) for path in (*saturated, *others)[:40])
        for name, pictures in (("CBSD68", tuple(list_pictures([self.data / "denoise" / "cbsd68"]))), ("CID22", cid22)):
            samples = noisy_samples(pictures[: self.limit], "clean", 0.0)
            self.row(f"{name} clean, worst", samples, self.networks("denoise", 0.0), worst=True)

    def rain(self) -> None:
        self.pairs("derain", "derain/rain100l_test")

    def cameras(self) -> None:
        self.pairs("realnoise", "realnoise/cc15", sigma=8.0)

    def blur(self) -> None:
        self.pairs("deblur", "deblur/gopro6")

    def pairs(self, task: str, folder: str, sigma: float | None = None) -> None:
        samples = open_samples(self.data / folder, task, limit=self.limit)
        self.row(folder, samples, self.networks(task, sigma), worst=False, on_luma=TASKS[task].luma)

    def sharp(self) -> None:
        """What ``deblur`` does to pictures that are sharp: the mean of the difference, and that of edges."""
        pictures = list_pictures([self.data / "denoise" / "cbsd68"])[: self.limit]
        for name, restore in self.networks("deblur").items():
            found = []
            for picture in pictures:
                image = read_float(picture.clean)
                restored = to_8bit(restore(image)) / 255
                found.append(
                    (psnr(restored, image), 255 * float((restored - image).mean()), edges(restored) / edges(image))
                )
            values = np.array(found)
            print(
                f"| {len(found)} sharp pictures, deblur {name} | mean {values[:, 0].mean():.2f} dB, worst"
                f" {values[:, 0].min():.2f} | brightness {values[:, 1].mean():+.2f} codes | edges"
                f" x {values[:, 2].mean():.3f} |",
                flush=True,
            )

    def row(
        self, name: str, samples: Samples, columns: dict[str, Restore], *, worst: bool, on_luma: bool = False
    ) -> None:
        """The mean of the input and of every column, or the worst picture of each."""
        found: dict[str, list[float]] = {"in": [], **{column: [] for column in columns}}
        for sample in samples:
            view = luma if on_luma else np.asarray
            truth = view(to_8bit(sample.truth) / 255)
            found["in"].append(psnr(view(to_8bit(sample.degraded) / 255), truth))
            for column, restore in columns.items():
                found[column].append(psnr(view(to_8bit(restore(sample.degraded)) / 255), truth))
        figures = [f"{column} {min(values) if worst else np.mean(values):.2f}" for column, values in found.items()]
        print(f"| {name} ({len(found['in'])}) | {' | '.join(figures)} |", flush=True)

    def video(self) -> None:
        """24 frames of a clip with noise in its planes, beside what FFmpeg has for it."""
        source = self.data / "video" / "mdn_flower_960x540.mp4"
        cut = ffmpeg("-i", source, "-vf", f"crop={SIDE}:{SIDE}:{LEFT}:{TOP},format=yuv420p", "-frames:v", FRAMES)
        noisy = ffmpeg("-i", "-", "-vf", NOISE, given=cut)
        clips = {"in": noisy, "nlmeans=s=14": ffmpeg("-i", "-", "-vf", "nlmeans=s=14", given=noisy)}
        for name, weights in self.checkpoints("denoise").items():
            with tempfile.TemporaryDirectory() as folder:
                request = Request(str(weights), precision="fp32", targets=("onnx",), tile=(SIDE, SIDE), limit=1)
                export_artifact(replace(request, output=Path(folder) / "artifact"))
                clips[name] = run(
                    ECHOIR, "stream", "-", "-", "-m", Path(folder) / "artifact", "--threads", 1, "--quiet", given=noisy
                )
        truth = pixels(cut)
        figures = [
            f"{name} {np.mean([psnr(*pair, 255) for pair in zip(pixels(clip), truth, strict=True)]):.2f}"
            for name, clip in clips.items()
        ]
        print(f"| video ({len(truth)} frames) | {' | '.join(figures)} |", flush=True)


def edges(image: NDArray[np.float64]) -> float:
    """Root mean square of the differences of neighbours."""
    return float(np.sqrt(np.square(np.diff(image, axis=0)).mean() + np.square(np.diff(image, axis=1)).mean()))


def ffmpeg(*arguments: str | int | Path, given: bytes | None = None) -> bytes:
    """YUV4MPEG2 out of FFmpeg; ``given`` is the same, for ``-i -``."""
    return run("ffmpeg", "-loglevel", "error", *arguments, "-f", "yuv4mpegpipe", "-strict", "-1", "-", given=given)


def pixels(clip: bytes) -> NDArray[np.uint8]:
    """Frames of a clip in YUV4MPEG2 as uint8 RGB [N, 256, 256, 3]."""
    raw = run("ffmpeg", "-loglevel", "error", "-i", "-", "-f", "rawvideo", "-pix_fmt", "rgb24", "-", given=clip)
    return np.frombuffer(raw, np.uint8).reshape(-1, SIDE, SIDE, 3)


def run(program: str | Path, *arguments: str | int | Path, given: bytes | None = None) -> bytes:
    return subprocess.run([str(program), *map(str, arguments)], input=given, stdout=subprocess.PIPE, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ("noise", "clean", "rain", "cameras", "blur", "sharp", "video")
    parser.add_argument("--data", default=os.environ.get("ECHOIR_DATA"))
    parser.add_argument("--only", nargs="+", default=sections, choices=sections)
    parser.add_argument("--limit", type=int, help="the first so many pictures of each set")
    parser.add_argument(
        "--weights", type=Path, default=SHIPPED, help="a folder of checkpoints [default: the shipped ones]"
    )
    parser.add_argument("--before", type=Path, help="a folder of checkpoints to stand beside")
    parser.add_argument("--ffdnet", type=Path, help="FFDNet_color.mat")
    options = parser.parse_args()
    if options.data is None:
        parser.error("name the folder of the pictures with --data or ECHOIR_DATA")
    card = Card(options)
    for section in options.only:
        getattr(card, section)()


if __name__ == "__main__":
    main()
