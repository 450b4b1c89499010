"""Policies: what every op does with NaN, infinities, masked rows and neighbouring rows (docs/numerics.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from softgate.testing.laws._law import law
from softgate.testing.laws.attention import agree
from softgate.testing.laws.rows import apply
from softgate.testing.report import fail
from softgate.testing.strategies import AttentionDraw, LossDraw, RowDraw
from softgate.testing.subject import Subject

__all__ = [
    "fully_masked_rows",
    "masked_gradient_is_zero",
    "nan_is_not_dropped",
    "nan_stays_in_its_batch_entry",
    "nan_stays_in_its_sample",
    "one_entry_alone",
    "row_independent",
]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal entry by entry, NaN equal to NaN."""
    return (
        a.shape == b.shape and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(0.0), b.nan_to_num(0.0))
    )


@law("row_map", "row_reduction", draws="any_rows", always=True)
def nan_is_not_dropped(op: Subject, draw: RowDraw) -> None:
    """NaN in a row shows in that row's result (for a map, at least where it was)."""
    y = apply(op, draw.x)
    where = draw.x.isnan() if op.record.family == "row_map" else draw.x.isnan().any(-1)
    if not bool(y.isnan()[where].all()):
        fail("NaN was dropped", x=draw.x, y=y)


@law("scalar_map", draws="any_rows", always=True)
def one_entry_alone(op: Subject, draw: RowDraw) -> None:
    """NaN gives NaN, and no entry depends on another: each gives alone, bit for bit, what it gives among others."""
    y = apply(op, draw.x)
    if not bool(y.isnan()[draw.x.isnan()].all()):
        fail("NaN was dropped", x=draw.x, y=y)
    alone = torch.stack([apply(op, entry) for entry in draw.x.flatten()]).reshape(draw.x.shape)
    if not same_bits(y, alone):
        fail("an entry depends on its neighbours", x=draw.x, together=y, alone=alone)


@law("row_map", "row_reduction", draws="any_rows", always=True)
def row_independent(op: Subject, draw: RowDraw) -> None:
    """A row's result depends, bit for bit, on that row only: not on its position, the batch size or NaN elsewhere."""
    x = draw.x
    alone = torch.cat([apply(op, x[i : i + 1]) for i in range(len(x))])
    together = apply(op, x)
    if not same_bits(together, alone):
        fail("a row depends on the other rows", x=x, together=together, alone=alone)
    if not same_bits(apply(op, x.flip(0)), together.flip(0)):
        fail("a row depends on its position", x=x)
    poison = torch.full((5, x.shape[-1]), float("nan"))
    if not same_bits(apply(op, torch.cat([poison, x, poison]))[5:-5], together):
        fail("NaN in other rows changes a row", x=x, together=together)


def _has_masked_rows(op: Subject) -> bool:
    return op.record.masked_rows != "not applicable"


@law("row_map", draws="masked_rows", always=True, applies=_has_masked_rows)
def fully_masked_rows(op: Subject, draw: RowDraw) -> None:
    """A row of -inf gives zeros and zero gradient, or NaN, as the record says; other rows do not notice."""
    x = torch.cat([torch.full((1, draw.x.shape[-1]), float("-inf")), draw.x]).requires_grad_()
    y = apply(op, x)
    if not same_bits(y[1:].detach(), apply(op, draw.x)):
        fail("a fully masked row changes the others", x=draw.x)
    if op.record.masked_rows == "nan":
        if not bool(y[0].isnan().all()):
            fail("a fully masked row is not NaN", y=y[0])
        return
    if bool((y[0] != 0).any()):
        fail("a fully masked row is not zero", y=y[0])
    (g,) = torch.autograd.grad(y[0].sum(), x)
    if bool((g != 0).any()):
        fail("a fully masked row has a gradient", gradient=g)


@law("row_map", draws="masked_rows", always=True, applies=_has_masked_rows)
def masked_gradient_is_zero(op: Subject, draw: RowDraw) -> None:
    """An entry of -inf gets exactly weight 0 (log-weight -inf) and gradient 0; the gradient of the others is finite."""
    x = draw.x[(draw.x > float("-inf")).any(-1)].clone().requires_grad_()
    y = apply(op, x)
    masked = x.detach() == float("-inf")
    lowest = op.record.output_range[0]
    if bool((y[masked] != lowest).any()):
        fail(f"a masked entry is not {lowest}", x=x, y=y)
    seed = (torch.randint(-8, 9, y.shape, generator=draw.generator) / 8).to(y.dtype)
    if lowest != 0:  # a log-weight of -inf has no useful gradient of its own
        seed[masked] = 0
    (g,) = torch.autograd.grad(y, x, seed)
    if bool((g[masked] != 0).any()) or not bool(g.isfinite().all()):
        fail("a masked entry has a gradient, or spoils that of the others", x=x, gradient=g)


@law("loss", draws="any_losses", always=True, applies=lambda op: op.is_free("reduction"))
def nan_stays_in_its_sample(op: Subject, draw: LossDraw) -> None:
    """A sample's loss depends, bit for bit, on that sample only, and NaN in its scores makes it NaN."""
    together = op(draw.x, draw.target, reduction="none")
    alone = torch.cat([op(draw.x[i : i + 1], draw.target[i : i + 1], reduction="none") for i in range(len(draw.x))])
    if not same_bits(together, alone):
        fail(
            "a sample's loss depends on the other samples", x=draw.x, target=draw.target, together=together, alone=alone
        )
    if not bool(together.isnan()[draw.x.isnan().any(-1)].all()):
        fail("NaN was dropped", x=draw.x, target=draw.target, loss=together)


@law("attention", draws="attention", always=True)
def nan_stays_in_its_batch_entry(op: Subject, draw: AttentionDraw) -> None:
    """NaN in one batch entry and head spoils no other, and is not dropped from its own."""
    clean = op(draw.query, draw.key, draw.value, *draw.extras)
    for place in (0, 1, 2):
        tensors = [draw.query.clone(), draw.key.clone(), draw.value.clone()]
        tensors[place][0, 0, 0, 0] = float("nan")
        spoilt = op(*tensors, *draw.extras)
        if not bool(spoilt[0, 0].isnan().any()):
            fail(f"NaN in argument {place} was dropped", query=draw.query, key=draw.key, value=draw.value)
        others = torch.ones(clean.shape[:2], dtype=torch.bool)
        others[0, 0] = False
        if not bool(others.any()):
            continue
        # up to rounding: NaN may send the call to another implementation
        agree(op, draw, spoilt[others], clean[others], f"NaN in argument {place} changed another head")
