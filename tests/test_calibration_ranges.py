"""Ranges against closed forms, and what is observed against NumPy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from echoir.calibration.ranges import LEVELS, METHODS, Activation, observe, squared_error


def activation(values: np.ndarray, places: int | None = None) -> Activation:
    values = values.astype(np.float32)
    return Activation(np.abs(values).max(axis=1), values, places or values.shape[1])


UNIFORM = activation(np.random.default_rng(0).uniform(-3, 3, (8, 4000)))


def test_uniform_values_are_not_clipped() -> None:
    for name, method in METHODS.items():
        assert 0.9 * UNIFORM.peak <= method(UNIFORM) <= 1.01 * UNIFORM.peak, name


def test_rounding_error_is_a_twelfth_of_a_squared_step() -> None:
    step = UNIFORM.peak / LEVELS
    assert squared_error(UNIFORM, UNIFORM.peak) == pytest.approx(step**2 / 12, rel=0.02)


def test_one_outlier_is_worth_clipping_to_all_but_min_max() -> None:
    values = np.random.default_rng(0).standard_normal((4, 20_000))
    values[0, 0] = 40
    outlier = activation(values)
    assert METHODS["min-max"](outlier) == 40
    assert METHODS["percentile"](outlier) == pytest.approx(np.quantile(np.abs(values), 0.9999), rel=1e-4)
    assert METHODS["entropy"](outlier) < 20
    # The least of (40 - t)^2 * a + t^2 * b: one outlier, counted as a sample and as a peak, against rounding.
    a, b = 2 / values.size, 1 / (12 * LEVELS**2)
    assert METHODS["mse"](outlier) == pytest.approx(40 * a / (a + b), rel=0.03)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-4, 1e4), st.floats(0.1, 3))
def test_the_least_error_is_no_more_than_any_other_methods(seed: int, size: float, tail: float) -> None:
    rng = np.random.default_rng(seed)
    values = activation(size * np.sign(rng.standard_normal((3, 500))) * rng.standard_exponential((3, 500)) ** tail)
    least = squared_error(values, METHODS["mse"](values))
    assert least <= squared_error(values, METHODS["min-max"](values)) * (1 + 1e-9)
    grid = [squared_error(values, values.peak * share) for share in np.linspace(0.2, 1, 100)]
    assert least <= 1.1 * min(grid)


def test_a_tensor_of_zeros_has_a_finite_error() -> None:
    zero = activation(np.zeros((2, 10)))
    assert squared_error(zero, METHODS["mse"](zero)) == 0


def test_what_is_observed_is_what_numpy_sees() -> None:
    shape = [1, 3, 8, 8]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "x"], ["squares"]), helper.make_node("Neg", ["squares"], ["y"])],
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    tiles = [np.random.default_rng(seed).standard_normal(shape).astype(np.float32) for seed in range(3)]
    told = []
    seen = observe(model, ["x", "squares"], tiles, threads=1, on_tile=lambda: told.append(1))
    assert len(told) == 3
    stack = np.concatenate(tiles)
    np.testing.assert_allclose(seen["x"].peaks, np.abs(stack).max(axis=(0, 2, 3)))
    np.testing.assert_allclose(seen["squares"].peaks, np.square(stack).max(axis=(0, 2, 3)), rtol=1e-6)
    assert seen["x"].places == 3 * 64
    assert seen["x"].values.shape == (3, 3 * 64)
    np.testing.assert_allclose(np.sort(seen["x"].values, axis=1), np.sort(stack.swapaxes(0, 1).reshape(3, -1), axis=1))
