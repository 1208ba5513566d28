"""The forms in which noisy pictures come, made as the world makes them: libjpeg, video's planes, files of 8 bits.

Training crops go through stand-ins in batches (:mod:`echoir.degradations`); what is measured, goes through this.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from echoir.metrics import to_8bit
from echoir.runtime.streams.conversion import Converter
from echoir.runtime.streams.pixels import FORMATS, Colour

Pixels = NDArray[np.float32]
"""float32 [H, W, 3] RGB, nominally in [0, 1]."""
Form = Callable[[Pixels, float, np.random.Generator], tuple[Pixels, Pixels]]

JPEG_QUALITY = 95
CORRELATION = 0.7  # pixels: width of the filter that correlated noise went through


def rgb(clean: Pixels, sigma: float, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Gaussian noise, independent in each channel and not clipped: the literature's."""
    return clean + _white(clean.shape, sigma, rng), clean


def clipped(clean: Pixels, sigma: float, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """The same as a file of 8 bits holds it."""
    return _rounded(rgb(clean, sigma, rng)[0]), clean


def gray(clean: Pixels, sigma: float, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """A gray picture in three equal channels; not clipped."""
    luma = np.repeat((clean @ np.array([0.299, 0.587, 0.114], np.float32))[..., None], 3, axis=2)
    return luma + _white((*clean.shape[:2], 1), sigma, rng), luma


def jpeg(clean: Pixels, sigma: float, rng: np.random.Generator, subsampling: int) -> tuple[Pixels, Pixels]:
    """A file of 8 bits, then a JPEG of quality 95 with chroma at 4:4:4, 4:2:2 or 4:2:0 (Pillow's 0, 1, 2)."""
    stream = io.BytesIO()
    noisy = to_8bit(rgb(clean, sigma, rng)[0])
    Image.fromarray(noisy).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=subsampling)
    return np.asarray(Image.open(stream), np.float32) / np.float32(255), clean


def yuv420(clean: Pixels, sigma: float, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """A frame of video, noise in its planes: BT.601 in studio range, as ``echoir stream`` hands it to a model.

    ``sigma`` is in codes of the planes. The truth is the frame without noise.
    """
    planes = _planes(to_8bit(clean))
    noisy = [
        np.rint(plane + sigma * rng.standard_normal(plane.shape)).clip(0, 255).astype(np.uint8) for plane in planes
    ]
    return _pixels(noisy, clean.shape), _pixels(planes, clean.shape)


def correlated(clean: Pixels, sigma: float, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Noise that went through a small blur, of the given level behind it, in a file of 8 bits."""
    noise = gaussian_filter(rng.standard_normal(clean.shape), (CORRELATION, CORRELATION, 0), mode="wrap")
    noise *= sigma / 255 / noise.std()
    return _rounded(clean + noise.astype(np.float32)), clean


def clean(clean: Pixels, sigma: float, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """No noise at all: the picture must come back as it was."""
    return clean, clean


FORMS: dict[str, Form] = {
    "rgb": rgb,
    "clipped": clipped,
    "gray": gray,
    "jpeg444": partial(jpeg, subsampling=0),
    "jpeg422": partial(jpeg, subsampling=1),
    "jpeg420": partial(jpeg, subsampling=2),
    "yuv420": yuv420,
    "correlated": correlated,
    "clean": clean,
}


def forms_named(names: Sequence[str]) -> tuple[str, ...]:
    """What ``--form`` was given: keys of :data:`FORMS`, or ``all`` of them.

    Raises:
        click.BadParameter: no such form.
    """
    if unknown := set(names) - {*FORMS, "all"}:
        raise click.BadParameter(
            f"no form {unknown.pop()!r}: there are {', '.join(FORMS)} and all", param_hint="--form"
        )
    return tuple(FORMS) if "all" in names else tuple(names)


def _white(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> Pixels:
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma / 255)


def _rounded(image: Pixels) -> Pixels:
    return to_8bit(image).astype(np.float32) / np.float32(255)


def _planes(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Y, Cb, Cr of 8-bit RGB as yuv420p; chroma is the mean of each 2 x 2 pixels."""
    height, width = (side + side % 2 for side in image.shape[:2])
    values = np.pad(image, [(0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)], mode="edge") / 255
    luma = values @ [0.299, 0.587, 0.114]
    fields = [(values[..., 2] - luma) / 1.772, (values[..., 0] - luma) / 1.402]
    small = [field.reshape(height // 2, 2, width // 2, 2).mean((1, 3)) for field in fields]
    luma = luma[: image.shape[0], : image.shape[1]]
    return [np.rint(plane).astype(np.uint8) for plane in (16 + 219 * luma, 128 + 224 * small[0], 128 + 224 * small[1])]


def _pixels(planes: list[NDArray[np.uint8]], shape: tuple[int, ...]) -> Pixels:
    colour = Colour("bt601", "limited", "center")
    return Converter(FORMATS["yuv420p"], shape[0], shape[1], colour, eight_bit=False).image(planes).copy()
