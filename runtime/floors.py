"""Floors under logits, which OpenVINO does without.

GRL's masked logits lie 100 below the others, where the exponential gives subnormal numbers, and those cost
ONNX Runtime ten times as much as others; so its export lifts logits to a little below the largest of their row
(``docs/grl.md``). OpenVINO is no slower for subnormal numbers (measured on x86-64 with AMX), but the floor's passes
over the logits are two fifths of its time.
"""

from __future__ import annotations

from typing import Any

LEAST = 64.0
"""A floor that is so far below the largest logit lifts what is nothing beside it in float32: e^-64 of it."""


def without_floors(model: Any) -> int:
    """Take floors of the form ``softmax(max(x, reduce_max(x) - constant))`` out of an ``openvino.Model``.

    Returns:
        How many there were.
    """
    found = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Softmax" and (logits := _floored(node.input_value(0))) is not None:
            node.input(0).replace_source_output(logits)
            found += 1
    return found


def _floored(value: Any) -> Any | None:
    """The logits under a floor; None where there is none."""
    node = value.get_node()
    if node.get_type_name() != "Maximum":
        return None
    first, second = node.input_value(0), node.input_value(1)
    return next((x for x, other in ((first, second), (second, first)) if _is_floor_of(x, other)), None)


def _is_floor_of(logits: Any, value: Any) -> bool:
    below = value.get_node()
    if below.get_type_name() != "Subtract":
        return False
    largest, step = (below.input_value(i).get_node() for i in (0, 1))
    if largest.get_type_name() != "ReduceMax" or step.get_type_name() != "Constant":
        return False
    return bool(largest.input_value(0) == logits and step.get_data().min() >= LEAST)
