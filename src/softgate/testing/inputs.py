"""Generated inputs: what every op of a signature family is called with.

A family of inputs is a function ``(subject, dtype, generator)`` that yields :class:`~softgate.testing.subject.Call`.
Values are drawn in float64 and rounded, so that all dtypes see the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

from softgate.testing.subject import Call, Subject

__all__ = ["INPUTS", "extras_like", "families_for", "random", "small_call"]

Maker = Callable[[Subject, torch.dtype, Generator], Iterator[Call]]


def random(generator: Generator, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Normal numbers, drawn in float64 and rounded to ``dtype``."""
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def _rows(*shapes: tuple[int, ...], dims: tuple[int, ...] = (-1,), scale: float = 3.0) -> Maker:
    def make(subject: Subject, dtype: torch.dtype, generator: Generator) -> Iterator[Call]:
        for shape in shapes:
            for dim in dims:
                x = random(generator, *shape, dtype=dtype, scale=scale)
                yield _row_call(subject, x, dim)

    return make


def _row_call(subject: Subject, x: Tensor, dim: int) -> Call:
    return Call((x, dim) if subject.record.family in ("row_map", "row_reduction") else (x,))


def _non_contiguous(subject: Subject, dtype: torch.dtype, generator: Generator) -> Iterator[Call]:
    x = random(generator, 9, 14, dtype=dtype)
    for view in (x.t(), x[:, ::2], x[1::3], x[:, 3:]):
        yield _row_call(subject, view, -1)
        yield _row_call(subject, view, 0)


def _expanded(subject: Subject, dtype: torch.dtype, generator: Generator) -> Iterator[Call]:
    x = random(generator, 1, 7, dtype=dtype)
    for dim in (0, 1):
        yield _row_call(subject, x.expand(5, 7), dim)
        yield _row_call(subject, x.t().expand(7, 5), dim)


def _channels_last(subject: Subject, dtype: torch.dtype, generator: Generator) -> Iterator[Call]:
    x = random(generator, 2, 6, 4, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    for dim in (1, -1):
        yield _row_call(subject, x, dim)


def _huge_stride(subject: Subject, dtype: torch.dtype, generator: Generator) -> Iterator[Call]:
    """A dimension of size one may have any stride; one beyond 32 bits shows arithmetic done in int32."""
    x = random(generator, 17, dtype=dtype)
    yield _row_call(subject, x.as_strided((1, 17), (2**40, 1)), -1)
    yield _row_call(subject, x.as_strided((17, 1), (1, 2**40)), 0)


def _misaligned(subject: Subject, dtype: torch.dtype, generator: Generator) -> Iterator[Call]:
    x = random(generator, 64, dtype=dtype)
    for offset in range(1, 16):
        yield _row_call(subject, x[offset : offset + 37], -1)


def _wide(subject: Subject, dtype: torch.dtype, generator: Generator) -> Iterator[Call]:
    x = random(generator, 6, 40, dtype=torch.float64)
    x[1] *= 1e4
    x[2] = 0.0
    x[3, ::3] = x[3, 0]
    x[4, 5] = 1e4
    x[5] -= 1e4
    yield _row_call(subject, x.to(dtype), -1)


ROWS: dict[str, Maker] = {
    "scalar": _rows((), dims=(-1, 0)),
    "one_entry": _rows((1,), (4, 1)),
    "no_entries": _rows((3, 0), (0,)),
    "primes": _rows((3, 5, 7), (13, 11), (101,)),
    "around_powers_of_two": _rows(*((3, 2**k + d) for k in (3, 4, 5, 6, 7, 10) for d in (-1, 0, 1))),
    "non_contiguous": _non_contiguous,
    "expanded": _expanded,
    "channels_last": _channels_last,
    "every_dim": _rows((3, 4, 5), dims=(-3, -2, -1, 0, 1, 2)),
    "no_rows": _rows((0, 5), (2, 0, 3)),
    "long_rows": _rows((2, 2**16 + 3), (300_007,)),
    "huge_stride": _huge_stride,
    "misaligned": _misaligned,
    "wide_logits": _wide,
}


def _loss(*shape: int, classes: int = 5, scale: float = 3.0, kind: str = "index", **options: object) -> Maker:
    """Logits ``(N, C, d1..)`` for ``shape = (N, d1..)``, with class indices or probabilities as the target."""

    def make(subject: Subject, dtype: torch.dtype, generator: Generator) -> Iterator[Call]:
        if not subject.is_free(*(name for name in options if name != "reduction")):
            return
        full = (*shape[:1], classes, *shape[1:]) if shape else (classes,)
        x = random(generator, *full, dtype=dtype, scale=scale)
        target = torch.randint(classes, shape, generator=generator)
        if kind == "probability":
            target = random(generator, *full, dtype=torch.float64).softmax(1 if shape else 0).to(dtype)
        chosen = dict(options)
        if chosen.pop("weight", None) is not None:
            chosen["weight"] = torch.rand(classes, generator=generator, dtype=torch.float64).to(dtype) + 0.5
        if "ignore_index" in chosen and shape:
            target.view(-1)[::3] = int(str(chosen["ignore_index"]))
        reductions = ("none", "mean", "sum") if subject.is_free("reduction") else (None,)
        for reduction in reductions:
            yield Call((x, target), chosen if reduction is None else {**chosen, "reduction": reduction})

    return make


def _loss_strided(subject: Subject, dtype: torch.dtype, generator: Generator) -> Iterator[Call]:
    x = random(generator, 5, 12, dtype=dtype, scale=3.0).t()[::2]
    yield Call((x, torch.randint(5, (6,), generator=generator)))


LOSSES: dict[str, Maker] = {
    "class_indices": _loss(7),
    "one_sample": _loss(),
    "images": _loss(2, 3, 4),
    "no_samples": _loss(0),
    "one_class": _loss(4, classes=1),
    "two_classes": _loss(9, classes=2),
    "many_classes": _loss(3, classes=5003),
    "large_logits": _loss(6, scale=3e3),
    "weights": _loss(7, weight=True),
    "ignored": _loss(7, ignore_index=-100),
    "ignored_and_weighted": _loss(2, 5, ignore_index=3, weight=True),
    "smoothed": _loss(7, label_smoothing=0.1),
    "smoothed_and_weighted": _loss(7, label_smoothing=0.3, weight=True),
    "probabilities": _loss(7, kind="probability"),
    "probability_images": _loss(2, 3, kind="probability"),
    "non_contiguous": _loss_strided,
}


def extras_like(subject: Subject, query: Tensor, generator: Generator) -> tuple[object, ...]:
    """Positional arguments after ``value``, taken from the record's samples and made to fit ``query``.

    An extra tensor that has the query's leading dimensions in the sample (a gate, say) is drawn anew in the query's
    shape; its last dimension stays 1 if it was 1. Anything else is passed as it is.
    """
    if subject.record.samples is None:
        return ()
    for args, _ in subject.record.samples(query.dtype, generator):
        extras: list[object] = []
        for extra in args[3:]:
            if isinstance(extra, Tensor) and extra.shape[:-1] == args[0].shape[:-1]:
                width = 1 if extra.shape[-1] == 1 else query.shape[-1]
                extras.append(random(generator, *query.shape[:-1], width, dtype=query.dtype))
            else:
                extras.append(extra)
        return tuple(extras)
    return ()


def _attention(
    queries: int = 5,
    keys: int = 5,
    *,
    batch: int = 2,
    heads: int = 3,
    kv_heads: int | None = None,
    width: int = 4,
    value_width: int | None = None,
    layout: str = "contiguous",
    mask: str | None = None,
    **options: object,
) -> Maker:
    def make(subject: Subject, dtype: torch.dtype, generator: Generator) -> Iterator[Call]:
        needed = [*options, "attn_mask"] if mask else list(options)
        limited = [name for name in subject.limited if not (name == "attn_mask" and mask == "keys")]
        if not subject.accepts(*needed) or any(name in limited for name in needed):
            return
        q = random(generator, batch, heads, queries, width, dtype=dtype)
        k = random(generator, batch, kv_heads or heads, keys, width, dtype=dtype)
        v = random(generator, batch, kv_heads or heads, keys, value_width or width, dtype=dtype)
        if layout == "transposed":  # (B, T, H, D) as projections make it
            q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v))
        extras = extras_like(
            subject, q if value_width is None else q[..., :1].expand(*q.shape[:-1], value_width), generator
        )
        chosen = dict(options)
        if mask is not None:
            chosen |= {"attn_mask": _mask(mask, (batch, heads, queries, keys), dtype, generator)}
            chosen |= {"is_causal": False} if subject.accepts("is_causal") else {}
        free = tuple(i for i, a in enumerate((q, k, v, *extras)) if isinstance(a, Tensor) and a.is_floating_point())
        yield Call((q, k, v, *extras), chosen, differentiable=free)

    return make


def _mask(kind: str, shape: tuple[int, int, int, int], dtype: torch.dtype, generator: Generator) -> Tensor:
    allowed = torch.rand(shape, generator=generator) < 0.6
    allowed[..., 0] = True
    if kind == "bool":
        return allowed[0, 0]
    if kind == "keys":
        allowed = allowed[:, :1, :1]
        allowed[0] = False  # a batch entry of padding
        return allowed
    if kind == "masked_row":
        allowed[0, :, 1] = False
        return allowed
    bias = random(generator, *shape, dtype=dtype)
    return bias.masked_fill(~allowed, float("-inf"))[:, :1]


ATTENTION: dict[str, Maker] = {
    "square": _attention(),
    "longer_keys": _attention(3, 7),
    "longer_queries": _attention(7, 3),
    "one_query": _attention(1, 9),
    "one_key": _attention(4, 1),
    "no_keys": _attention(3, 0),
    "no_batch": _attention(batch=0),
    "long": _attention(131, 67, heads=1, width=16),
    "wide_values": _attention(value_width=6),
    "odd_width": _attention(width=7),
    "transposed": _attention(layout="transposed"),
    "causal": _attention(is_causal=True),
    "causal_longer_keys": _attention(3, 7, is_causal=True),
    "causal_longer_queries": _attention(7, 3, is_causal=True),
    "bool_mask": _attention(5, 6, mask="bool"),
    "float_mask": _attention(5, 6, mask="float"),
    "masked_row": _attention(5, 6, mask="masked_row"),
    "key_mask": _attention(5, 6, mask="keys"),
    "grouped_queries": _attention(heads=4, kv_heads=2, enable_gqa=True),
    "scale": _attention(scale=0.3),
}


def _samples(subject: Subject, dtype: torch.dtype, generator: Generator) -> Iterator[Call]:
    """The record's own samples; gradients of the tensors marked ``requires_grad``, else of all floating-point ones."""
    if subject.record.samples is None:
        return
    for args, kwargs in subject.record.samples(dtype, generator):
        floats = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point()]
        marked = [i for i in floats if args[i].requires_grad]
        plain = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
        yield Call(plain, kwargs, differentiable=tuple(marked or floats))


INPUTS: dict[str, dict[str, Maker]] = {
    "row_map": ROWS,
    "row_reduction": ROWS,
    "scalar_map": ROWS,
    "loss": LOSSES,
    "attention": ATTENTION,
    "custom": {},
}


def families_for(subject: Subject) -> dict[str, Maker]:
    """The families of inputs of this op: those of its signature, and its own samples.

    Samples replace the generated inputs of the elementwise and row families and add to those of losses and attention.
    """
    generated = INPUTS[subject.record.family]
    if subject.record.samples is None:
        return generated
    own: dict[str, Maker] = {"samples": _samples}
    return {**generated, **own} if subject.record.family in ("loss", "attention") else own


def small_call(subject: Subject, dtype: torch.dtype, key: str) -> Call:
    """One small ordinary call of the op, for finite differences and transforms."""
    generator = subject.generator(key)
    makers: dict[str, Maker] = {
        "row_map": _rows((2, 4), scale=1.0),
        "row_reduction": _rows((2, 4), scale=1.0),
        "scalar_map": _rows((2, 4), scale=1.0),
        "loss": _loss(3, classes=4, scale=1.0),
        "attention": _attention(3, 4, batch=1, heads=2, width=2),
    }
    own = subject.record.family == "custom" or (
        subject.record.samples and subject.record.family not in ("loss", "attention")
    )
    maker = _samples if own else makers[subject.record.family]
    return next(iter(maker(subject, dtype, generator)))
