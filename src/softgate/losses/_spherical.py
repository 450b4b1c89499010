"""What losses of the spherical family share when they are given statistics of the logits instead of the logits.

Such a loss depends on the D logits of a row only through the target's logit ``a``, the sum of squares ``q`` and the
sum ``s``. Here: argument checks, ignored rows, reduction, and inputs for the conformance suite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from softgate._checks import check_float_tensor, check_same_device
from softgate.dispatch import transform_reason
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, check_choice
from softgate.losses._targets import REDUCTIONS, reduce_rows, split_ignored

__all__: list[str] = []


def check_stats(
    a: Any, q: Any, s: Any, num_classes: Any, target: Any, weight: Any, ignore_index: Any, reduction: Any
) -> None:
    """Raise unless the statistics agree in shape and dtype and the options are those of ``F.cross_entropy``."""
    for name, value in (("a", a), ("q", q), ("s", s)):
        check_float_tensor(name, value)
        if value.shape != a.shape:
            raise ArgumentValueError(f"{name} must have the shape of a, {tuple(a.shape)}, got {tuple(value.shape)}")
        if value.dtype != a.dtype:
            raise ArgumentTypeError(f"{name} must have the dtype of a, {a.dtype}, got {value.dtype}")
    check_class_count("num_classes", num_classes, 1)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        bad_type("ignore_index", ignore_index, "an int")
    check_choice("reduction", reduction, REDUCTIONS)
    if target is not None:
        check_classes("target", target, num_classes, ignore_index)
        if target.shape != a.shape:
            raise ArgumentValueError(f"target must have the shape of a, {tuple(a.shape)}, got {tuple(target.shape)}")
    if weight is not None:
        check_float_tensor("weight", weight)
        if weight.shape != (num_classes,):
            raise ArgumentValueError(f"weight must have shape ({num_classes},), got {tuple(weight.shape)}")
        if target is None:
            raise ArgumentValueError("weight needs target: without it the class of a row is unknown")
    check_same_device(a=a, q=q, s=s, target=target, weight=weight)


def check_class_count(name: str, value: Any, low: int) -> None:
    """Raise unless ``value`` is an int of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int):
        bad_type(name, value, "an int")
    if value < low:
        raise ArgumentValueError(f"{name} must be at least {low}, got {value}")


def check_classes(name: str, value: Any, num_classes: int, ignore_index: int | None) -> None:
    """Raise unless ``value`` holds int64 class indices in ``[0, num_classes)`` or equal to ``ignore_index``."""
    if not isinstance(value, Tensor):
        bad_type(name, value, "a torch.Tensor")
    if value.layout is not torch.strided or value.is_nested:
        raise ArgumentTypeError(f"{name} must be a dense (strided) tensor, got layout {value.layout}")
    if value.dtype is not torch.int64:
        raise ArgumentTypeError(f"{name} must hold int64 class indices, got {value.dtype}")
    if not value.numel() or transform_reason(value) is not None:
        return
    low, high = (int(end) for end in value.aminmax())
    if low >= 0 and high < num_classes:
        return
    wrong = value[(value < 0) | (value >= num_classes)]
    wrong = wrong if ignore_index is None else wrong[wrong != ignore_index]
    if wrong.numel():
        also = "" if ignore_index is None else f" or equal to ignore_index={ignore_index}"
        raise ArgumentValueError(f"{name} must be in [0, {num_classes}){also}, got {int(wrong[0])}")


def hide_ignored_stats(stats: Sequence[Tensor], target: Tensor | None, ignore_index: int) -> list[Tensor]:
    """The statistics with ignored rows set to 0, so that neither their NaN nor infinities reach a gradient."""
    if target is None:
        return list(stats)
    return [x.masked_fill(target == ignore_index, 0.0) for x in stats]


def reduce_stats(
    rows: Tensor, target: Tensor | None, weight: Tensor | None, ignore_index: int, reduction: str
) -> Tensor:
    """Drop ignored rows, weight the others by their class and reduce, as ``F.cross_entropy`` does."""
    if target is None:
        return reduce_rows(rows, None, None, reduction)
    index, keep = split_ignored(target, ignore_index)
    return reduce_rows(rows, keep, None if weight is None else weight.to(rows.dtype)[index], reduction)


def stats_samples(dtype: torch.dtype, generator: Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Statistics of random logits of 7 classes, with and without targets, class weights and ignored rows."""
    for shape in ((3,), (), (2, 3), (0,)):
        logits = torch.randn(*shape, 7, generator=generator, dtype=torch.float64)
        target = torch.randint(7, shape, generator=generator)
        a = logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        stats = [x.to(dtype).requires_grad_() for x in (a, logits.square().sum(-1), logits.sum(-1))]
        yield (*stats, 7), {}
        yield (*stats, 7), {"target": target, "reduction": "sum"}
        if shape:
            weight = torch.rand(7, generator=generator, dtype=torch.float64).to(dtype) + 0.5
            ignored = target.clone()
            ignored.view(-1)[::3] = -100
            yield (*stats, 7), {"target": ignored, "weight": weight, "reduction": "none"}


def bad_stats() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    """Invalid calls of a loss that takes statistics."""
    a = torch.ones(3)
    y = torch.tensor([0, 6, 2])
    yield (a, torch.ones(2), a, 7), {}, ValueError, "q"
    yield (a, a, torch.ones(3, 1), 7), {}, ValueError, "s"
    yield (a, a.double(), a, 7), {}, TypeError, "q"
    for count in (0, -3):
        yield (a, a, a, count), {}, ValueError, "num_classes"
    for kind in (7.0, True, None, "7"):
        yield (a, a, a, kind), {}, TypeError, "num_classes"
    yield (a, a, a, 6), {"target": y}, ValueError, "target"
    yield (a, a, a, 7), {"target": y[:2]}, ValueError, "target"
    yield (a, a, a, 7), {"target": y - 1}, ValueError, "target"
    yield (a, a, a, 7), {"target": y.float()}, TypeError, "target"
    yield (a, a, a, 7), {"target": [0, 1, 2]}, TypeError, "target"
    yield (a, a, a, 7), {"weight": torch.ones(7)}, ValueError, "weight"
    yield (a, a, a, 7), {"weight": torch.ones(6), "target": y}, ValueError, "weight"
