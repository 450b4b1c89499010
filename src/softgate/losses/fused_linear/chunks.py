"""The loops over chunks of rows: logits of a chunk, statistics, gradient in the same memory, products.

Algorithm A (:func:`loss_and_gradients`) forms the gradients together with the loss: three products a chunk. Algorithm
B is two such loops (:func:`losses`, later :func:`gradients`) with the logits computed twice: four products, for
gradients of row losses and whenever A's gradients are used up.

Shape suffixes: N rows that count, V classes (of this process), D features; n is a chunk of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softgate._math.matmul import multiply, suits
from softgate._math.pages import in_large_pages
from softgate.losses.fused_linear.passes import Classes, Passes, slope_of
from softgate.losses.fused_linear.reference import row_losses, scores
from softgate.losses.fused_linear.rows import Rows, Slopes, Statistics, Weights, finish, merged
from softgate.losses.fused_linear.settings import Settings
from softgate.losses.fused_linear.shards import Shard

__all__: list[str] = []

#: Memory of one chunk of logits, unless that is fewer rows than products need to be fast.
_BYTES = 1 << 27
_FEWEST, _MOST = 64, 512
#: A chunk so small that more rows, for faster products, are worth more than less memory.
_SMALL, _SMALL_ROWS = 1 << 22, 128
#: On a GPU every chunk starts some fifty kernels, and the sum of the weight's gradient is read and written once.
_GPU_BYTES, _GPU_ROWS = 1 << 30, 1024
#: Logits of a chunk that are swept over and multiplied before the next ones: they stay in the last cache.
_TILE, _ALIGNED = 1 << 21, 64
#: Classes whose weights are widened at a time, or whose gradient may be skipped.
_PIECE = 4096
#: From this size on an allocation is a mapping of its own.
_LARGE = 1 << 23


@dataclass(frozen=True)
class Problem:
    """One call: operands, labels and how they are worked on.

    Attributes:
        x: (M, D), all rows.
        weight: (V, D), the classes of this process.
        bias: (V,) or None.
        rows: (N,) int64, which rows count; None if all do.
        labels: (N,) int64, their classes, over all processes.
        class_weight: (V,) over all processes, or None.
        settings: the options.
        passes: who sweeps over the blocks.
        shard: where the classes of this process stand.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    rows: Tensor | None
    labels: Tensor
    class_weight: Tensor | None
    settings: Settings
    passes: Passes
    shard: Shard

    @property
    def wide(self) -> torch.dtype:
        """Dtype of logits and sums."""
        return self.settings.wide(torch.promote_types(self.x.dtype, self.weight.dtype))

    @property
    def count(self) -> int:
        """Rows that count."""
        return self.labels.shape[0]

    def row_weight(self) -> Tensor:
        """Class weight of every row that counts, float64 (N,)."""
        if self.class_weight is None:
            return torch.ones(self.labels.shape, dtype=torch.float64, device=self.labels.device)
        return self.class_weight.double()[self.labels]

    def denominator(self) -> Tensor:
        """What the reduction divides by; 1 where that would be 0: no rows give loss 0."""
        if self.settings.reduction != "mean":
            return torch.ones((), dtype=torch.float64, device=self.labels.device)
        total = self.row_weight().sum()
        return torch.where(total == 0.0, 1.0, total)


@dataclass
class Gradients:
    """Sums in the wide dtype; None where not needed."""

    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, p: Problem, needed: tuple[bool, bool, bool]) -> Gradients:
        """Memory for the needed ones. Rows of ``x`` that do not count are 0; the first chunk writes the weight's."""
        written = p.count > 0 and p.weight.dtype == p.wide and not p.settings.grad_filter_eps
        weight = fresh(p.weight.shape, p) if needed[1] else None
        return cls(
            p.x.new_zeros(p.x.shape, dtype=p.wide) if needed[0] else None,
            weight if weight is None or written else weight.zero_(),
            p.x.new_zeros(p.weight.shape[:1], dtype=p.wide) if needed[2] else None,
        )


def fresh(shape: Sequence[int], p: Problem) -> Tensor:
    """Memory that was not written, in large pages where there are any: touching small ones takes as long as a sweep."""
    return in_large_pages(torch.empty(shape, dtype=p.wide, device=p.x.device), at_least=_LARGE)


def chunk_rows(p: Problem) -> int:
    """Rows per chunk: a third of the features, so that the logits take a third of the memory of the weights."""
    if isinstance(p.settings.chunk, int):
        return p.settings.chunk
    classes, features = p.weight.shape
    row = max(classes, 1) * p.wide.itemsize
    if p.x.is_cuda:
        rows = min(max(features // 3 // 64 * 64, _GPU_ROWS), _GPU_BYTES // row)
    else:
        wanted = max(features // 3 // 4 * 4, min(_SMALL // row, _SMALL_ROWS))
        rows = min(wanted, _MOST, _BYTES // row)
    return min(max(rows, _FEWEST), max(p.count, 1))


class Block:
    """The chunks of one call, one after the other in the same memory."""

    def __init__(self, p: Problem) -> None:
        self.p = p
        self.size = chunk_rows(p)
        self.memory = fresh((self.size, p.weight.shape[0]), p)
        # Tensor cores multiply bfloat16 into float32 sums; its range holds the small entries of a mean's gradient.
        self.narrow = p.x.is_cuda and p.x.dtype is p.weight.dtype is torch.bfloat16 and p.wide is torch.float32
        self.whole = (self.narrow or p.weight.dtype == p.wide) and not p.settings.grad_filter_eps
        bias = None if p.bias is None else p.bias.to(p.wide)
        self.spread = self._spread()
        local = self.spread
        if isinstance(local, Tensor):
            local = local[p.shard.start : p.shard.start + p.weight.shape[0]].to(p.wide)
        self.classes = Classes(bias, local)

    def _spread(self) -> Tensor | float | None:
        p = self.p
        if not p.settings.label_smoothing or p.settings.smooths_every_class:
            return None
        each = p.settings.label_smoothing / p.shard.classes
        return each if p.class_weight is None else each * p.class_weight.double()

    def parts(self) -> Iterator[slice]:
        """Slices of the rows that count."""
        for start in range(0, self.p.count, self.size):
            yield slice(start, min(start + self.size, self.p.count))

    def inputs(self, part: slice) -> Tensor:
        """Rows of ``x`` in the dtype of the products."""
        rows = self.p.rows
        return (self.p.x[part] if rows is None else self.p.x[rows[part]]).to(self.operand)

    @property
    def operand(self) -> torch.dtype:
        """Dtype of what is multiplied."""
        return torch.bfloat16 if self.narrow else self.p.wide

    def multiply(self, a: Tensor, b: Tensor, out: Tensor, *, add: bool) -> None:
        """``out (+)= a b`` with sums in the wide dtype."""
        if not self.narrow and not suits(a, b, out):  # else they are widened on the way
            a, b = a.to(self.p.wide), b.to(self.p.wide)
        if not self.narrow:
            return multiply(a, b, out, add=add)
        a, b = a.to(torch.bfloat16), b.to(torch.bfloat16)
        if add:
            torch.addmm(out, a, b, out=out, out_dtype=torch.float32)
        else:
            torch.mm(a, b, out=out, out_dtype=torch.float32)

    def logits(self, x_nD: Tensor, columns: slice) -> Tensor:
        """``x W^T`` of some classes without the bias, in the shared memory."""
        z_nv = self.memory[: x_nD.shape[0], columns]
        self.multiply(x_nD, self.p.weight[columns].t(), z_nv, add=False)
        return z_nv

    def tiles(self) -> list[slice]:
        """The classes in pieces that are worked on together."""
        classes = self.p.weight.shape[0]
        width = max(classes, 1) if self.whole else _PIECE
        if self.p.x.is_cpu:
            width = min(width, max(_TILE // max(self.size, 1) // _ALIGNED * _ALIGNED, _ALIGNED))
        return [slice(start, min(start + width, classes)) for start in range(0, max(classes, 1), width)]

    def weights(self, part: slice, row_weight: Tensor, upstream: Tensor) -> Weights:
        """How much the rows of a chunk count."""
        if self.spread is None:
            return Weights(row_weight[part], upstream[part])
        if isinstance(self.spread, float):
            return Weights(row_weight[part], upstream[part], self.spread * self.p.shard.classes, self.spread)
        labels = self.p.labels[part]
        return Weights(row_weight[part], upstream[part], self.spread.sum(), self.spread[labels])

    def add_products(self, g_nv: Tensor, x_nD: Tensor, columns: slice, into: Gradients, started: bool) -> None:
        """``dX += G W`` of some classes; ``dW += G^T X``, written where not yet ``started``; ``db += G^T 1``."""
        if self._is_negligible(g_nv):
            return
        g = g_nv.to(self.operand)
        if into.x is not None:
            self.multiply(g, self.p.weight[columns], into.x, add=True)
        if into.weight is not None:
            self.multiply(g.t(), x_nD, into.weight[columns], add=started)
        if into.bias is not None:
            into.bias[columns].add_(g_nv.sum(0))

    def _is_negligible(self, g_nV: Tensor) -> bool:
        eps = self.p.settings.grad_filter_eps
        if not eps:
            return False
        return bool(g_nV.abs().amax() < eps / self.p.denominator())


@dataclass
class Outcome:
    """Row losses, log-sum-exps and hits of the rows that count, (N,); gradients with algorithm A."""

    loss: Tensor
    lse: Tensor
    hit: Tensor

    @classmethod
    def empty(cls, p: Problem) -> Outcome:
        """To be filled chunk by chunk."""
        loss, lse = (torch.empty(p.labels.shape, dtype=torch.float64, device=p.x.device) for _ in range(2))
        return cls(loss, lse, torch.empty(p.labels.shape, dtype=torch.bool, device=p.x.device))

    def put(self, part: slice, rows: Rows) -> None:
        """Note one chunk."""
        self.loss[part], self.lse[part], self.hit[part] = rows.loss, rows.lse, rows.hit


def loss_and_gradients(p: Problem, needed: tuple[bool, bool, bool]) -> tuple[Outcome, Gradients]:
    """Algorithm A: row losses, and gradients of the reduced loss."""
    upstream = torch.ones_like(p.labels, dtype=torch.float64) / p.denominator()
    return _sweep(p, needed, upstream)


def losses(p: Problem) -> Outcome:
    """First half of algorithm B: row losses only."""
    upstream = torch.zeros_like(p.labels, dtype=torch.float64)
    return _sweep(p, (False, False, False), upstream)[0]


def gradients(p: Problem, needed: tuple[bool, bool, bool], upstream: Tensor) -> Gradients:
    """Second half of algorithm B: gradients of ``sum_i upstream_i loss_i``, upstream (N,) float64."""
    return _sweep(p, needed, upstream)[1]


def _sweep(p: Problem, needed: tuple[bool, bool, bool], upstream: Tensor) -> tuple[Outcome, Gradients]:
    with torch.no_grad(), torch.autocast(p.x.device.type, enabled=False):
        return _sweep_chunks(p, needed, upstream)


def _sweep_chunks(p: Problem, needed: tuple[bool, bool, bool], upstream: Tensor) -> tuple[Outcome, Gradients]:
    outcome, sums = Outcome.empty(p), Gradients.of(p, needed)
    block, row_weight = Block(p), p.row_weight()
    for part in block.parts():
        x_nD = block.inputs(part)
        gx_nD = torch.zeros_like(x_nD, dtype=p.wide) if sums.x is not None else None
        chunk = _Chunk(block, x_nD, p.labels[part], block.weights(part, row_weight, upstream))
        into = Gradients(gx_nD, sums.weight, sums.bias) if any(needed) else None
        outcome.put(part, chunk.rows(into, started=part.start > 0 or not block.whole))
        if sums.x is not None and gx_nD is not None:
            sums.x[part if p.rows is None else p.rows[part]] = gx_nD
    if sums.x is not None:
        p.shard.add_up(sums.x)
    return outcome, sums


@dataclass
class _Chunk:
    """Rows that are computed together, tile after tile of the classes: (n, D), (n,), and how much they count."""

    block: Block
    x: Tensor
    labels: Tensor
    weights: Weights

    def rows(self, into: Gradients | None, *, started: bool) -> Rows:
        """Values of the rows; their gradients are added to ``into`` (the weight's written unless ``started``)."""
        p = self.block.p
        if p.settings.smooths_every_class:
            return self._whole_rows(into, started=started)
        target = p.shard.local(self.labels)
        if p.settings.loss == "svm":
            return self._hinge_rows(target, into, started=started)
        tiles = [(columns, self._within(target, columns)) for columns in self.block.tiles()]
        found = p.shard.merge(merged(self._scan(*tile) for tile in tiles))
        rows = finish(found, self.weights, p.settings)
        if into is None:
            return rows
        at_target = rows.at_target * slope_of(found.target, p.settings)
        slopes = Slopes(found.top, rows.scale, self.weights.upstream, at_target)
        for columns, place in tiles:
            u_nv = self.block.memory[: len(target), columns]
            classes = self.block.classes.of(columns)
            p.passes.slopes(u_nv, place, slopes, classes, p.settings)
            self.block.add_products(u_nv, self.x, columns, into, started)
        return rows

    def _within(self, target: Tensor, columns: slice) -> Tensor:
        """Place of each target in a tile, -1 where it is elsewhere."""
        if columns.stop - columns.start == self.block.p.weight.shape[0]:
            return target
        return torch.where((target >= columns.start) & (target < columns.stop), target - columns.start, -1)

    def _scan(self, columns: slice, target: Tensor) -> Statistics:
        p = self.block.p
        z_nv = self.block.logits(self.x, columns)
        return p.passes.scan(z_nv, target, self.block.classes.of(columns), p.settings)

    def _hinge_rows(self, target: Tensor, into: Gradients | None, *, started: bool) -> Rows:
        p, weights = self.block.p, self.weights
        scale, parts = weights.row * weights.upstream, []
        for columns in self.block.tiles():
            z_nv = self.block.logits(self.x, columns)
            classes = self.block.classes.of(columns)
            parts.append(p.passes.hinge(z_nv, self._within(target, columns), scale, classes, p.settings))
            if into is not None:
                self.block.add_products(z_nv, self.x, columns, into, started)
        found = p.shard.merge(merged(parts, hinge=True), hinge=True)
        nothing = torch.zeros_like(found.total)
        return Rows(weights.row * found.total, nothing, found.target > found.top, nothing, nothing)

    def _whole_rows(self, into: Gradients | None, *, started: bool) -> Rows:
        """Rows whose loss sums a function over all classes: by autograd on this chunk of logits alone."""
        for columns in self.block.tiles():
            self.block.logits(self.x, columns)
        z_nV = self.block.memory[: len(self.labels)]
        rows = _dense_rows(self.block, z_nV, self.labels, self.weights)
        if into is not None:
            for columns in self.block.tiles():
                self.block.add_products(z_nV[:, columns], self.x, columns, into, started)
        return rows


def _dense_rows(block: Block, z_nV: Tensor, labels: Tensor, weights: Weights) -> Rows:
    """Values of whole rows, whose logits become the gradient."""
    p = block.p
    if block.classes.bias is not None:
        z_nV.add_(block.classes.bias)
    class_weight = None if p.class_weight is None else p.class_weight.to(p.wide)
    with torch.enable_grad():
        leaf = z_nV.detach().requires_grad_()
        loss = row_losses(leaf, labels, p.settings, class_weight)
        (slopes,) = torch.autograd.grad(loss, leaf, weights.upstream.to(loss.dtype))
        u_nV = scores(leaf.detach(), p.settings)
    hit = u_nV.gather(1, labels[:, None]).squeeze(1) > u_nV.scatter(1, labels[:, None], float("-inf")).amax(1)
    lse = torch.logsumexp(u_nV, 1).double()
    z_nV.copy_(slopes)
    nothing = torch.zeros_like(lse)
    return Rows(loss.detach().double(), lse, hit, nothing, nothing)
