"""How much of the network's change is applied: linear, in strips as whole, and refused where it means nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from running import echoir

from echoir.runtime import Restorer
from echoir.runtime.artifact import Artifact
from echoir.runtime.descriptor import Descriptor
from echoir.runtime.errors import ArtifactError
from echoir.runtime.manifest import FLOAT_NCHW, TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]


class Inverse:
    """Gives the negative."""

    def run(self, tiles: Array) -> Array:
        return 1 - tiles

    def close(self) -> None: ...


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 80), st.integers(1, 60)),
    strength=st.floats(0, 1),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
    gray=st.booleans(),
    most=st.sampled_from([None, 4096]),
)
def test_the_change_is_applied_in_part(
    size: tuple[int, int], strength: float, dtype: Any, gray: bool, most: int | None
) -> None:
    rng = np.random.default_rng(0)
    shape = size if gray else (*size, 3)
    peak = 1 if dtype == np.float32 else np.iinfo(dtype).max
    image = (rng.random(shape) * peak).astype(dtype)
    manifest = make_manifest(tile=(16, 24), most=most)
    made = Restorer(Inverse(), manifest, strength=strength)(image)  # type: ignore[arg-type]
    exact = image + strength * (peak - 2.0 * image.astype(np.float64))
    assert (made.shape, made.dtype) == (image.shape, image.dtype)
    np.testing.assert_allclose(made, exact, rtol=0, atol=1e-6 if dtype == np.float32 else 0.51)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_none_of_it_is_the_image_and_all_of_it_what_was_restored_to_the_bit(
    dtype: Any, rng: np.random.Generator
) -> None:
    image = (rng.random((70, 50, 3)) * (1 if dtype == np.float32 else np.iinfo(dtype).max)).astype(dtype)
    manifest = make_manifest(tile=(16, 24))
    none, all_, usual = (
        Restorer(Inverse(), manifest, **wishes)(image)  # type: ignore[arg-type]
        for wishes in ({"strength": 0}, {"strength": 1}, {})
    )
    np.testing.assert_array_equal(none, image)
    np.testing.assert_array_equal(all_, usual)
    assert (usual != image).any()


def test_where_there_is_nothing_to_mix_with_it_is_refused() -> None:
    twice = Descriptor("Grow", "sr", 1, scale=2, multiple=(8, 8))
    colour = Descriptor("Paint", "colour", 1, input="gray", multiple=(8, 8))
    gray = TensorSpec("image", **FLOAT_NCHW, colour="gray")
    for network, changes, hint in ((twice, {}, "Grow enlarges 2 times"), (colour, {"input": gray}, "RGB of gray")):
        manifest = make_manifest(network=network, **changes)
        Restorer(Inverse(), manifest, strength=1)  # type: ignore[arg-type]
        with pytest.raises(ArtifactError, match=rf"strength: found 0\.5, needed 1; .*{hint}.*nothing to mix"):
            Restorer(Inverse(), manifest, strength=0.5)  # type: ignore[arg-type]
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ArtifactError, match="a number from 0 to 1"):
            Restorer(Inverse(), make_manifest(), strength=wrong)  # type: ignore[arg-type]


def test_restore_applies_as_much_as_it_is_told(gain: Artifact, tmp_path: Path, rng: np.random.Generator) -> None:
    """The model halves every pixel: half of that change leaves three quarters."""
    pixels = rng.integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    result = echoir("restore", tmp_path / "a.png", "-m", gain.model_path, "-o", tmp_path / "b.png", "--strength", 0.5)
    assert result.code == 0, result.err
    assert np.abs(np.asarray(Image.open(tmp_path / "b.png")) - 0.75 * pixels).max() <= 0.76
    wrong = echoir("restore", tmp_path / "a.png", "-m", gain.model_path, "-o", tmp_path / "c.png", "--strength", 1.5)
    assert (wrong.code, "--strength" in wrong.err) == (2, True)
