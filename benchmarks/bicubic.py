"""Bicubic reduction and enlargement on a set, as tables of super-resolution have it: mean PSNR of Y, in dB.

python benchmarks/bicubic.py --data SET5

Published for Set5 (Dong et al. 2016, SRCNN, table 2): x2 33.66, x3 30.39, x4 28.42. As there, Y is taken in 8 bits,
reduced, enlarged, and compared without a border of as many pixels as the scale.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import numpy as np

from echoir.data import list_pictures, read_float
from echoir.metrics import luma, psnr, to_8bit
from echoir.resize import resize

SCALES = (2, 3, 4)


def figure(path: Path, scale: int) -> float:
    """One picture, in dB."""
    truth = to_8bit(luma(read_float(path)))
    height, width = (size // scale * scale for size in truth.shape)
    truth = truth[:height, :width]
    small = to_8bit(resize(truth / np.float32(255), Fraction(1, scale))) / np.float32(255)
    inner = (slice(scale, -scale),) * 2
    return psnr(to_8bit(resize(small, scale))[inner], truth[inner], 255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    pictures = [picture.clean for picture in list_pictures([parser.parse_args().data])]
    for scale in SCALES:
        print(f"x{scale}  {np.mean([figure(path, scale) for path in pictures]):.2f} dB")


if __name__ == "__main__":
    main()
