"""GRL for export: the same function of the picture, as a small graph of few passes over it.

What depends on sizes alone invites constant folding, and folded biases and masks of a 256 x 256 tile come to
gigabytes. So position biases are spread at run time from tables of their distinct values, and the coordinates
that mask shifted grids from two short vectors; both hang on the input by a zero that no optimizer can see.
``docs/grl.md`` says why each part has the form it has.
"""

from __future__ import annotations

import copy
import math

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoir.networks.grl import GRL, MASKED, Attend, Block, Grid, MixedAttention

Pair = tuple[int, int]
PARTS = ("within", "gather", "spread")  # the attentions of a block
FLOOR = 64.0  # below the largest logit of a row, where a weight of e^-64 is nothing beside 1


@torch.no_grad()
def lean(network: nn.Module) -> GRL:
    """A copy of ``network`` for export, inference only; ``network`` is left as it is."""
    assert isinstance(network, GRL)
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for block in [module for module in network.modules() if isinstance(module, Block)]:
        assert isinstance(block.attention, MixedAttention)
        block.attention = Attention(block.attention)  # type: ignore[assignment]
        block.mlp = PerPixel(*block.mlp)
    return network


class PerPixel(nn.Sequential):
    """Layers on the last axis, by way of a matrix [everything else, C]: a linear layer is then one Gemm."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


class Attention(nn.Module):
    """:class:`echoir.networks.grl.MixedAttention`: the picture is cut into cells before its projections.

    Queries, keys and values come from layers of their own, so nothing of the picture's size is sliced.
    Pixels of a stripe go column by column, anchors row by row: see :class:`Similarity`.
    """

    def __init__(self, attention: MixedAttention) -> None:
        super().__init__()
        self.factor, self.windows = attention.factor, Cells(attention.windows, attention.heads)
        self.stripes = Cells(attention.stripes, attention.heads, by_column=True)
        self.anchors = Cells(attention.stripes.over(attention.factor), attention.heads)
        layers = zip(attention.qkv.weight.chunk(6), attention.qkv.bias.chunk(6), strict=True)
        self.q, self.k, self.v, self.stripe_q, self.stripe_k, self.stripe_v = (
            PerPixel(_linear(weight, bias)) for weight, bias in layers
        )
        self.anchor, self.proj = PerPixel(attention.anchor), PerPixel(attention.proj)
        self.within = Similarity(attention.within, self.windows, self.windows)
        self.gather = Similarity(attention.gather, self.anchors, self.stripes)
        self.spread = Similarity(attention.spread, self.stripes, self.anchors)

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        counts, stripe_counts = self.windows.counts(height, width), self.stripes.counts(height, width)
        zero = (x[:1, 0, 0, 0].abs() < 0).to(torch.int64)
        cells = self.windows.cut(x)
        q, k, v = (self.windows.heads_first(layer(cells)) for layer in (self.q, self.k, self.v))
        windows = self.windows.join(self.within(q, k, v, zero, counts), height, width)

        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), self.factor).permute(0, 2, 3, 1)
        a = self.anchors.heads_first(self.anchor(self.anchors.cut(pooled)))
        cells = self.stripes.cut(x)
        q, k, v = (self.stripes.heads_first(layer(cells)) for layer in (self.stripe_q, self.stripe_k, self.stripe_v))
        a_out = self.gather(a, k, v, zero, stripe_counts)
        stripes = self.stripes.join(self.spread(q, a, a_out, zero, stripe_counts), height, width)
        return self.proj(torch.cat([windows, stripes], -1))


class Cells:
    """A grid and the order of the tokens in its cells: row by row, or column by column."""

    def __init__(self, grid: Grid, heads: int, by_column: bool = False) -> None:
        self.grid, self.heads, self.by_column = grid, heads, by_column

    def counts(self, height: int, width: int) -> Pair:
        """Cells in a column and in a row of a map of that size."""
        return height // self.grid.size[0], width // self.grid.size[1]

    def cut(self, x: Tensor) -> Tensor:
        """[N, H, W, C] -> [N * cells, tokens, C]."""
        (n, height, width, c), (h, w) = x.shape, self.grid.size
        if any(self.grid.shift):
            x = x.roll((-self.grid.shift[0], -self.grid.shift[1]), (1, 2))
        x = x.reshape(n * (height // h), h, width // w, w, c)
        return (
            x.permute(0, 2, 3, 1, 4).reshape(-1, w * h, c)
            if self.by_column
            else x.transpose(1, 2).reshape(-1, h * w, c)
        )

    def heads_first(self, x: Tensor) -> Tensor:
        """[cells, tokens, heads * D] -> [cells, heads, tokens, D]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def join(self, x: Tensor, height: int, width: int) -> Tensor:
        """[N * cells, heads, tokens, D] -> [N, H, W, heads * D]."""
        (_, heads, _, d), (h, w) = x.shape, self.grid.size
        if self.by_column:
            x = x.reshape(-1, width // w, heads, w, h, d).permute(0, 4, 1, 3, 2, 5)
        else:
            x = x.reshape(-1, width // w, heads, h, w, d).permute(0, 3, 1, 4, 2, 5)
        x = x.reshape(-1, height, width, heads * d)
        return x.roll(self.grid.shift, (1, 2)) if any(self.grid.shift) else x

    def sides(self, counts: Pair, zero: Tensor, factor: float, constant: float) -> Tensor:
        """What masks by a product, for a map of so many cells: ``factor`` times the signs of
        :meth:`echoir.networks.grl.Grid.sides`, and ``constant``: [cells, 1, tokens, 4]."""
        (h, w), (rows, columns) = self.grid.size, counts
        y, x = (
            torch.where(torch.arange(length) < length - shift, 1.0, -1.0)
            for length, shift in zip((rows * h, columns * w), self.grid.shift, strict=True)
        )
        down = torch.stack([factor * y, y * 0 + factor, factor * y, y * 0 + constant], -1).view(rows, 1, h, 1, 4)
        across = torch.stack([x * 0 + 1, x, x, x * 0 + 1], -1).view(1, columns, 1, w, 4)
        if self.by_column:
            down, across = down.transpose(2, 3), across.transpose(2, 3)
        return ((down + zero.to(y.dtype)) * across).reshape(-1, 1, h * w, 4)


class Weights(nn.Module):
    """[cells, heads, queries, keys] from queries, keys and a bias. Masked pairs are 100 below the others, where exp
    gives subnormal numbers; those cost a CPU ten times as much as others, so logits of shifted grids end at a floor."""

    def __init__(self, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted

    def forward(self, q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
        logits = q @ k + bias
        if self.shifted:
            logits = logits.maximum(logits.amax(-1, keepdim=True) - FLOOR)
        return logits.softmax(-1)


class Similarity(nn.Module):
    """:class:`echoir.networks.grl.Attend` on cells, with its bias spread from a table.

    With queries column by column and keys row by row (or the other way round) the bias of a query is one
    stretch of the table, once that is spread along the queries' rows: it takes two gathers of whole rows and
    no transposition. Of windows, where both have the same order, the bias is small enough to turn.
    """

    scale: Tensor
    table: Tensor

    def __init__(self, attend: Attend, queries: Cells, keys: Cells) -> None:
        super().__init__()
        self.queries, self.keys = queries, keys
        self.register_buffer("scale", attend.log_scale.clamp(max=math.log(100)).exp())
        table = attend.table(queries.grid.size, keys.grid.size)
        self.register_buffer("table", (table.transpose(1, 2) if keys.by_column else table).contiguous())
        self.weights = Weights(any(queries.grid.shift))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, zero: Tensor, counts: Pair) -> Tensor:
        q = q * (self.scale / _length(q))
        k = k / _length(k)
        if self.weights.shifted:
            q = self.append(q, self.queries, counts, zero, MASKED / 4, -0.75 * MASKED)
            k = self.append(k, self.keys, counts, zero, 1.0, 1.0)
        return self.weights(q, k.transpose(-2, -1), self.bias(zero)) @ v

    def bias(self, zero: Tensor) -> Tensor:
        """[heads, queries, keys]."""
        (h, w), (m, n) = self.queries.grid.size, self.keys.grid.size
        if self.keys.by_column:
            h, w, m, n = w, h, n, m
        across, down = (_offsets(*sides) + zero for sides in ((w, n), (h, m)))
        rows = self.table.index_select(2, across).unflatten(2, (w, n)).transpose(1, 2)  # [heads, w, h + m - 1, n]
        bias = rows.index_select(2, down).unflatten(2, (h, m))  # [heads, w, h, m, n]
        if self.queries.by_column == self.keys.by_column:
            bias = bias.transpose(1, 2)
        return bias.reshape(-1, h * w, m * n)

    def append(self, x: Tensor, cells: Cells, counts: Pair, zero: Tensor, factor: float, constant: float) -> Tensor:
        """Four more coordinates: 0 is added to a product of tokens of the same side, -100 to others."""
        sides = cells.sides(counts, zero, factor, constant)
        batch = x.shape[0] // sides.shape[0]
        return torch.cat([x, sides.expand(batch, -1, x.shape[1], -1, -1).flatten(0, 1)], -1)


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)


def _offsets(queries: int, keys: int) -> Tensor:
    """Where in a table's axis the bias of each query and key lies: [queries * keys]."""
    return (torch.arange(queries)[:, None] - torch.arange(keys) + keys - 1).flatten()


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer.requires_grad_(False)


def in_unit_length(node: onnx.NodeProto) -> bool:
    """Whether a node divides queries or keys by their lengths. In float16 the guard against a length of 0 would
    vanish, and the scale of 100 over a short query's length pass 65504."""
    kinds = ("Clip", "Max", "Div", "Mul", "Reciprocal")
    return in_attention(node.name) and not _in_weights(node.name) and node.op_type in kinds


def in_logits(node: onnx.NodeProto) -> bool:
    """Whether a node makes logits or their softmax. They reach 116, where float16 steps by 0.06."""
    return in_attention(node.name) and _in_weights(node.name)


def in_attention(name: str) -> bool:
    """Whether a node, by name, belongs to :class:`Similarity`; nodes are named after their modules."""
    scopes = name.split("/")
    return "attention" in scopes and any(part in scopes for part in PARTS)


def _in_weights(name: str) -> bool:
    return "weights" in name.split("/")
