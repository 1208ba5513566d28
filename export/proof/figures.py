"""What is measured when two restorations of one image are compared. NumPy in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoir.export.proof.spread import Spread
from echoir.metrics import psnr, ssim, to_8bit

Image = NDArray[np.float32]  # [H, W, 3], nominally in [0, 1]
Window = tuple[slice, slice]  # rows, columns


@dataclass(frozen=True)
class SquaredError:
    """A sum of squared differences that can be added to others, so that a set pools its pixels.

    Attributes:
        total: sum of squares, on the scale where the peak is 1.
        count: values summed over.
    """

    total: float = 0.0
    count: int = 0

    @classmethod
    def between(cls, a: NDArray[Any], b: NDArray[Any], where: NDArray[np.bool_] | None = None) -> SquaredError:
        """Of two images; ``where`` [H, W] picks pixels, all channels of each."""
        square = np.square(a.astype(np.float64) - b)
        if where is not None:
            square = square[where]
        return cls(float(square.sum()), square.size)

    def __add__(self, other: SquaredError) -> SquaredError:
        return SquaredError(self.total + other.total, self.count + other.count)

    @property
    def mse(self) -> float:
        """Mean squared error; NaN over no values."""
        return self.total / self.count if self.count else math.nan

    @property
    def psnr(self) -> float:
        """In dB for a peak of 1: infinite where nothing differs, NaN over no values."""
        return math.inf if self.total == 0 and self.count else -10 * math.log10(self.mse) if self.count else math.nan

    def to_json(self) -> dict[str, float | None]:
        """``psnr`` is null where nothing differs (then ``mse`` is 0) or nothing was compared."""
        return {"psnr": finite(self.psnr), "mse": finite(self.mse)}


@dataclass(frozen=True)
class WorstTile:
    """The window of the tiling plan in which two images differ most."""

    image: str
    top: int
    left: int
    height: int
    width: int
    error: SquaredError

    @classmethod
    def among(cls, image: str, a: Image, b: Image, windows: Iterable[Window]) -> WorstTile:
        square = np.square(a.astype(np.float64) - b)

        def error(window: Window) -> SquaredError:
            return SquaredError(float(square[window].sum()), square[window].size)

        worst = max(windows, key=lambda window: error(window).mse)
        (top, bottom), (left, right) = ((s.start, s.stop) for s in worst)
        return cls(image, top, left, bottom - top, right - left, error(worst))

    def to_json(self) -> dict[str, Any]:
        place = {"image": self.image, "top": self.top, "left": self.left, "height": self.height, "width": self.width}
        return {**place, **self.error.to_json()}


@dataclass(frozen=True)
class AgainstTruth:
    """PSNR (dB) and SSIM against the ground truth, RGB in 8-bit after clipping and rounding."""

    degraded_psnr: float
    pytorch_psnr: float
    engine_psnr: float
    pytorch_ssim: float
    engine_ssim: float

    @classmethod
    def measure(cls, degraded: Image, pytorch: Image, engine: Image, truth: Image) -> AgainstTruth:
        codes = to_8bit(truth)
        return cls(
            psnr(to_8bit(degraded), codes, 255),
            psnr(to_8bit(pytorch), codes, 255),
            psnr(to_8bit(engine), codes, 255),
            ssim(to_8bit(pytorch), codes, 255),
            ssim(to_8bit(engine), codes, 255),
        )

    @classmethod
    def mean(cls, several: Sequence[AgainstTruth]) -> AgainstTruth:
        """Figure by figure over images, as the field reports a set."""
        names = cls.__dataclass_fields__
        return cls(**{name: math.fsum(getattr(one, name) for one in several) / len(several) for name in names})

    @property
    def delta_psnr(self) -> float:
        """Engine minus PyTorch in dB; 0 where both equal the truth."""
        return 0.0 if self.engine_psnr == self.pytorch_psnr else self.engine_psnr - self.pytorch_psnr

    def to_json(self) -> dict[str, float | None]:
        figures = {name: finite(getattr(self, name)) for name in self.__dataclass_fields__}
        return {**figures, "delta_psnr": finite(self.delta_psnr)}


@dataclass(frozen=True)
class AgainstWhole:
    """Tiles against the image in one piece through PyTorch.

    Attributes:
        engine: the tiled engine's difference from the whole image.
        pytorch: tiled PyTorch's, which is what tiling alone does.
        seam: the engine's, where more than one tile contributes.
        elsewhere: the engine's, where a single tile does.
        whole_psnr: the whole image's PSNR against ground truth, in dB.
        tiled_psnr: the tiled engine's.
    """

    engine: SquaredError
    pytorch: SquaredError
    seam: SquaredError
    elsewhere: SquaredError
    whole_psnr: float
    tiled_psnr: float

    @classmethod
    def measure(
        cls, engine: Image, pytorch: Image, whole: Image, truth: Image, seam: NDArray[np.bool_]
    ) -> AgainstWhole:
        """``seam``: [H, W], true where more than one tile contributes."""
        return cls(
            SquaredError.between(engine, whole),
            SquaredError.between(pytorch, whole),
            SquaredError.between(engine, whole, seam),
            SquaredError.between(engine, whole, ~seam),
            psnr(to_8bit(whole), to_8bit(truth), 255),
            psnr(to_8bit(engine), to_8bit(truth), 255),
        )

    @classmethod
    def pool(cls, several: Sequence[AgainstWhole]) -> AgainstWhole:
        """Differences pool their pixels; PSNR against truth is the mean over images."""

        def total(name: str) -> SquaredError:
            return sum((getattr(one, name) for one in several), SquaredError())

        whole = math.fsum(one.whole_psnr for one in several) / len(several)
        tiled = math.fsum(one.tiled_psnr for one in several) / len(several)
        return cls(total("engine"), total("pytorch"), total("seam"), total("elsewhere"), whole, tiled)

    @property
    def gain_psnr(self) -> float:
        """What tiling gains against ground truth, in dB; negative where it loses."""
        return 0.0 if self.tiled_psnr == self.whole_psnr else self.tiled_psnr - self.whole_psnr

    @property
    def seam_share(self) -> float:
        """The part of all pixels that lies in the seam band."""
        return self.seam.count / self.engine.count

    def to_json(self) -> dict[str, Any]:
        return {
            "engine": self.engine.to_json(),
            "pytorch": self.pytorch.to_json(),
            "seam": self.seam.to_json(),
            "elsewhere": self.elsewhere.to_json(),
            "seam_share": self.seam_share,
            "whole_psnr": finite(self.whole_psnr),
            "tiled_psnr": finite(self.tiled_psnr),
            "gain_psnr": finite(self.gain_psnr),
        }


@dataclass(frozen=True)
class ImageFigures:
    """All figures of one image.

    Attributes:
        error: engine against PyTorch on the same tiles, not clipped.
        code_error: the largest difference of the two in 8-bit codes, after clipping and rounding.
        channel_shift: mean of engine minus PyTorch per channel, in 8-bit codes.
        whole: None where the image is too large to go through PyTorch in one piece.
        label: what was done to the image; figures of one label are shown together.
        clean: nothing was, so that a network can only spoil it.
        spread: of the differences of engine and PyTorch.
        sha256: of the picture's file, or of a pair's two.
    """

    name: str
    height: int
    width: int
    error: SquaredError
    code_error: int
    channel_shift: tuple[float, float, float]
    worst_tile: WorstTile
    truth: AgainstTruth
    whole: AgainstWhole | None
    label: str = ""
    clean: bool = False
    spread: Spread = field(default_factory=Spread)
    sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "label": self.label,
            "sha256": self.sha256,
            "height": self.height,
            "width": self.width,
            "engine_against_pytorch": {
                **self.error.to_json(),
                "max_code_error": self.code_error,
                "error": self.spread.to_json(),
                "channel_shift": list(self.channel_shift),
                "worst_tile": self.worst_tile.to_json(),
            },
            "against_truth": self.truth.to_json(),
            "against_whole": None if self.whole is None else self.whole.to_json(),
        }


@dataclass(frozen=True)
class SetFigures:
    """The figures of a set of images, at least one."""

    images: tuple[ImageFigures, ...]

    @property
    def groups(self) -> dict[str, SetFigures]:
        """The images of each label, in the order in which they came."""
        labels = dict.fromkeys(image.label for image in self.images)
        return {label: SetFigures(tuple(one for one in self.images if one.label == label)) for label in labels}

    @property
    def clean(self) -> bool:
        """Whether nothing was done to any of them."""
        return all(image.clean for image in self.images)

    @property
    def error(self) -> SquaredError:
        """Engine against PyTorch over all pixels of the set."""
        return sum((image.error for image in self.images), SquaredError())

    @property
    def spread(self) -> Spread:
        """Of all pixels' errors."""
        return sum((image.spread for image in self.images), Spread())

    @property
    def worst(self) -> ImageFigures:
        """The image in which engine and PyTorch differ most."""
        return max(self.images, key=lambda image: image.error.mse)

    @property
    def mean_psnr(self) -> float:
        """Mean over images of the engine's PSNR against PyTorch."""
        return math.fsum(image.error.psnr for image in self.images) / len(self.images)

    @property
    def code_error(self) -> int:
        return max(image.code_error for image in self.images)

    @property
    def channel_shift(self) -> tuple[float, float, float]:
        """Over all pixels of the set, in 8-bit codes."""
        pixels = [image.error.count for image in self.images]
        red, green, blue = np.average([image.channel_shift for image in self.images], axis=0, weights=pixels).tolist()
        return red, green, blue

    @property
    def worst_tile(self) -> WorstTile:
        return max((image.worst_tile for image in self.images), key=lambda tile: tile.error.mse)

    @property
    def truth(self) -> AgainstTruth:
        return AgainstTruth.mean([image.truth for image in self.images])

    @property
    def largest_drop(self) -> ImageFigures:
        """The image whose PSNR against ground truth falls most, or rises least."""
        return min(self.images, key=lambda image: image.truth.delta_psnr)

    @property
    def whole(self) -> AgainstWhole | None:
        """Over the images that went through PyTorch in one piece; None if none did."""
        several = [image.whole for image in self.images if image.whole is not None]
        return AgainstWhole.pool(several) if several else None

    def to_json(self) -> dict[str, Any]:
        whole = self.whole
        return {
            "images": len(self.images),
            "engine_against_pytorch": {
                **self.error.to_json(),
                "psnr_mean": finite(self.mean_psnr),
                "psnr_min": finite(self.worst.error.psnr),
                "worst_image": self.worst.name,
                "max_code_error": self.code_error,
                "error": self.spread.to_json(),
                "channel_shift": list(self.channel_shift),
                "worst_tile": self.worst_tile.to_json(),
            },
            "against_truth": {
                **self.truth.to_json(),
                "delta_psnr_min": finite(self.largest_drop.truth.delta_psnr),
                "worst_image": self.largest_drop.name,
            },
            "against_whole": None if whole is None else whole.to_json(),
            "groups": {label: group.brief() for label, group in self.groups.items()} if len(self.groups) > 1 else {},
        }

    def brief(self) -> dict[str, float | int | None]:
        """The few figures of one label."""
        truth = self.truth
        return {
            "images": len(self.images),
            "psnr_min": finite(self.worst.error.psnr),
            "degraded_psnr": finite(truth.degraded_psnr),
            "pytorch_psnr": finite(truth.pytorch_psnr),
            "engine_psnr": finite(truth.engine_psnr),
            "delta_psnr": finite(truth.delta_psnr),
        }


def code_error(a: Image, b: Image) -> int:
    """The largest difference in 8-bit codes."""
    return int(np.abs(to_8bit(a).astype(np.int16) - to_8bit(b)).max())


def channel_shift(a: Image, b: Image) -> tuple[float, float, float]:
    """Mean of a minus b per channel, in 8-bit codes."""
    red, green, blue = (255 * (a.astype(np.float64) - b).mean(axis=(0, 1))).tolist()
    return red, green, blue


def finite(value: float) -> float | None:
    """JSON knows neither infinity nor NaN: null stands for both."""
    return value if math.isfinite(value) else None
