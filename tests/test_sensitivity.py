"""The search against costs that are known, and measurements that survive an interruption."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from echoir.calibration.graph import Layer
from echoir.calibration.sampler import Tile
from echoir.calibration.search import SPENT, search
from echoir.calibration.sensitivity import Drop, Group, Judge


class Additive:
    """Every layer costs a fixed number of dB, and costs add up."""

    def __init__(self, costs: dict[str, float]) -> None:
        self.costs, self.measured = costs, 0

    def drop(self, layers: Sequence[Layer]) -> Drop:
        self.measured += 1
        total = sum(self.costs[layer.name] for layer in layers)
        return Drop(total, total + 0.001)


def make_groups(macs: Sequence[int]) -> list[Group]:
    return [
        Group(f"g{index}", (Layer(f"layer{index}", "pointwise", count, ("x",), "w"),))
        for index, count in enumerate(macs)
    ]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 100), st.floats(0, 0.1)), min_size=1, max_size=40),
    st.floats(1e-3, 1),
)
def test_the_choice_keeps_to_the_budget_and_leaves_nothing_free(costs: list[tuple[int, float]], budget: float) -> None:
    groups = make_groups([macs for macs, _ in costs])
    measure = Additive({f"layer{index}": cost for index, (_, cost) in enumerate(costs)})
    total = sum(macs for macs, _ in costs)
    choice = search(groups, total, measure, budget)
    spent = sum(measure.costs[layer.name] for layer in choice.layers)
    assert spent <= SPENT * budget + 1e-9
    assert choice.drop == pytest.approx(spent, abs=1e-9)
    assert choice.share == pytest.approx(sum(layer.macs for layer in choice.layers) / total)
    # What costs nothing is in, and of two alike the dearer is never in without the cheaper's prefix.
    assert all(cost.int8 for cost in choice.costs if cost.drop <= 0)
    assert len(choice.layers) + len(choice.kept) == len(groups)
    # The greedy bound for a knapsack: no less than the best, minus what one group may add.
    by_ratio = sorted(costs, key=lambda cost: cost[1] / cost[0])
    bound, left = 0.0, SPENT * budget
    for macs, cost in by_ratio:
        part = 1.0 if cost <= left else left / cost
        bound, left = bound + part * macs, left - part * cost
        if part < 1:
            break
    assert sum(layer.macs for layer in choice.layers) >= bound - max(macs for macs, _ in costs) - 1e-6


def test_a_search_takes_few_combinations() -> None:
    rng = np.random.default_rng(0)
    groups = make_groups(rng.integers(1, 100, 64).tolist())
    measure = Additive({f"layer{index}": float(cost) for index, cost in enumerate(rng.exponential(0.01, 64))})
    told: list[str] = []
    search(groups, sum(group.macs for group in groups), measure, 0.1, on_group=told.append)
    assert told == [group.name for group in groups]
    assert measure.measured - len(groups) <= 12


def test_everything_fits_at_once_where_it_can() -> None:
    groups = make_groups([5, 5])
    measure = Additive({"layer0": 0.01, "layer1": -0.01})
    choice = search(groups, 10, measure, 0.1)
    assert choice.share == 1
    assert choice.kept == []
    assert measure.measured == 3


def test_nothing_fits_a_budget_of_nothing() -> None:
    choice = search(make_groups([5, 5]), 10, Additive({"layer0": 0.01, "layer1": 0.02}), 0.0)
    assert choice.layers == []
    assert choice.share == choice.drop == 0


# Judge


def brighten(amount: float) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("x", "y")]
    constant = numpy_helper.from_array(np.float32(amount), "amount")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "amount"], ["y"])], "add", values[:1], values[1:], [constant]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


LAYERS = [Layer("one", "pointwise", 1, ("x",), "w"), Layer("two", "pointwise", 1, ("x",), "w")]
TRUTH = np.full((1, 3, 8, 8), 0.5, np.float32)
TILES = [Tile("a", TRUTH + np.float32(10 / 255), TRUTH)]


class Quantizer:
    """Each layer in INT8 makes the picture ten codes brighter."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, layers: Collection[Layer]) -> onnx.ModelProto:
        self.calls += 1
        return brighten(10 / 255 * len(layers))


def test_a_drop_is_the_difference_of_psnr_in_8_bit_codes() -> None:
    judge = Judge(brighten(0), Quantizer(), TILES, identity="a", threads=1)
    assert judge.drop([]) == (0, 0)
    assert judge.drop(LAYERS[:1]) == pytest.approx((20 * np.log10(2),) * 2, abs=0.1)
    assert judge.drop(LAYERS) == pytest.approx((20 * np.log10(3),) * 2, abs=0.1)


def test_a_drop_is_that_of_the_strength_that_suffers_most() -> None:
    tiles = [Tile(str(i), TRUTH, TRUTH, strength) for i, strength in enumerate(("weak", "weak", "strong"))]
    judge = Judge(brighten(0), Quantizer(), tiles, identity="a", threads=1)
    assert judge.summarize(np.array([0.0, 0.3, 0.1])) == pytest.approx((0.15, 0.3))
    assert judge.summarize(np.array([0.0, 0.1, 0.2])) == pytest.approx((0.2, 0.2))


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    memory = tmp_path / "memory.json"
    first, second, other = Quantizer(), Quantizer(), Quantizer()
    drops = Judge(brighten(0), first, TILES, identity="a", memory=memory, threads=1).drop(LAYERS)
    again = Judge(brighten(0), second, TILES, identity="a", memory=memory, threads=1).drop(LAYERS[::-1])
    assert drops == pytest.approx(again)
    assert (first.calls, second.calls) == (1, 0)
    Judge(brighten(0), other, TILES, identity="b", memory=memory, threads=1).drop(LAYERS)
    assert other.calls == 1


@pytest.mark.parametrize("content", ["", "[1, 2", "{}", '{"identity": "a"}', '{"identity": "a", "psnr": 3}'])
def test_a_damaged_memory_is_not_believed(tmp_path: Path, content: str) -> None:
    memory = tmp_path / "memory.json"
    memory.write_text(content)
    quantizer = Quantizer()
    Judge(brighten(0), quantizer, TILES, identity="a", memory=memory, threads=1).drop(LAYERS)
    assert quantizer.calls == 1
