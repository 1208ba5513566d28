"""Export the shipped denoiser, restore a noisy photograph with it, and say in dB what was gained.

    python examples/demo.py [FOLDER]        FOLDER is ./echoir-demo by default

The same by hand: `echoir-export --precision fp16`, then `echoir restore`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from echoir.forms import clipped
from echoir.metrics import psnr, to_8bit
from echoir.samples import SHIPPED

SIGMA = 25  # of 255


def main(folder: Path) -> None:
    artifact, before, after = folder / "denoise-fp16", folder / "before.png", folder / "after.png"
    command("echoir-export", "--precision", "fp16", "-o", artifact, "--force")

    with Image.open(SHIPPED / "coffee.webp") as picture:
        clean = np.asarray(picture)
    noisy, _ = clipped(clean.astype(np.float32) / 255, SIGMA, np.random.default_rng(1))
    Image.fromarray(to_8bit(noisy)).save(before)

    command("echoir", "restore", before, "-m", artifact, "-o", after, "--exists", "overwrite")

    print(f"\na photograph with Gaussian noise, sigma {SIGMA}: PSNR against the clean one, in dB")
    pictures = []
    for path in (before, after):
        with Image.open(path) as picture:
            pictures.append(np.asarray(picture))
        print(f"  {path}  {psnr(pictures[-1], clean, 255):.2f}")
    side_by_side = folder / "before-after.jpg"
    Image.fromarray(np.hstack(pictures)).save(side_by_side, quality=92)
    print(f"  {side_by_side}  both, side by side")
    print(f"\nhow far the artifact is from PyTorch: {artifact / 'report.html'}")


def command(name: str, *arguments: str | Path) -> None:
    """Run one of this project's commands, shown as it would be typed; stop where it fails."""
    print("$", name, *arguments, flush=True)
    code = subprocess.run([Path(sys.executable).with_name(name), *arguments], check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("echoir-demo"))
