"""The chunked losses as operators of torch.library, for ``torch.compile``: one opaque node, no graph break."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed import distributed_c10d

from softgate.errors import StateError
from softgate.losses.fused_linear import backends, chunks
from softgate.losses.fused_linear.autograd import cast, row_gradients, scatter_rows
from softgate.losses.fused_linear.chunks import Gradients, Problem
from softgate.losses.fused_linear.prepare import Prepared
from softgate.losses.fused_linear.settings import Settings

__all__: list[str] = []


def run(call: backends.Call, backend: str) -> Any:
    """The loss of a call that is being traced."""
    settings, rows, weight = call.settings, call.rows, call.weight
    wide = settings.wide(torch.promote_types(rows.x.dtype, weight.dtype))
    name = backends.available(weight.device, wide, backend)
    if callable(settings.loss):
        return _run_callable(call, name, settings)
    options = encode(settings, name, call.group)
    operands = (rows.x, weight, call.bias, rows.labels, call.class_weight, *options)
    if settings.reduction == "none":
        return call.results(*torch.ops.softgate.fused_linear_rows(*operands))
    grad = torch.is_grad_enabled()
    needed = [grad and t is not None and t.requires_grad for t in (rows.x, weight, call.bias)]
    return call.results(*torch.ops.softgate.fused_linear_reduced(*operands, needed)[:3])


def _run_callable(call: backends.Call, name: str, settings: Settings) -> Any:
    """A function cannot be part of an operator: it is applied to the row log-probabilities, which have a gradient."""
    if settings.label_smoothing or settings.z_penalty:
        raise StateError("loss must be a name under torch.compile if there is label_smoothing or z_penalty")
    plain = Settings(**{**_fields(settings), "loss": "ce", "reduction": "none"})
    rows = call.rows
    options = encode(plain, name, call.group)
    found, lse, hit = torch.ops.softgate.fused_linear_rows(rows.x, call.weight, call.bias, rows.labels, None, *options)
    log_p = -found
    value, slope = settings.phi(log_p.detach())
    value = torch.where(rows.keep, value - slope * (log_p - log_p.detach()), 0.0)
    if call.class_weight is not None:
        value = value * call.class_weight.to(value.dtype)[torch.where(rows.keep, rows.labels, 0)]
    return call.results(call.reduce(value), lse, hit)


def _fields(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


Options = tuple[str, list[float], list[int]]


def encode(settings: Settings, backend: str, group: Any) -> Options:
    """Everything that is not a tensor, with numbers as such: tracing with dynamic shapes may make symbols of them."""
    dtype = "" if settings.accum_dtype is None else str(settings.accum_dtype)
    name = "" if group is None else group.group_name
    words = f"{settings.loss}|{settings.reduction}|{dtype}|{backend}|{name}"
    softcap, eps = settings.softcap or 0.0, settings.grad_filter_eps or 0.0
    floats = [settings.tau, settings.gamma, settings.temperature, softcap, settings.label_smoothing, settings.z_penalty]
    return words, [*floats, eps], [settings.ignore_index, settings.chunk if isinstance(settings.chunk, int) else 0]


def _decode(words: str, floats: list[float], ints: list[int]) -> tuple[Settings, str, Any]:
    loss, reduction, dtype, backend, name = words.split("|")
    tau, gamma, temperature, softcap, smoothing, penalty, eps = floats
    settings = Settings(
        loss,
        tau,
        gamma,
        temperature,
        softcap or None,
        smoothing,
        penalty,
        ints[0],
        reduction,
        chunk=ints[1] or None,
        accum_dtype=_dtype(dtype),
        grad_filter_eps=eps or None,
    )
    resolve: Any = distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
    return settings, backend, resolve(name) if name else None


def _dtype(name: str) -> torch.dtype | None:
    found: torch.dtype | None = getattr(torch, name.removeprefix("torch.")) if name else None
    return found


def _wide(x: Tensor, weight: Tensor, words: str) -> torch.dtype:
    both = torch.promote_types(x.dtype, weight.dtype)
    return Settings(accum_dtype=_dtype(words.split("|")[2])).wide(both)


def _problem(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    class_weight: Tensor | None,
    words: str,
    floats: list[float],
    ints: list[int],
) -> Problem:
    settings, backend, group = _decode(words, floats, ints)
    keep = labels != settings.ignore_index
    rows = Prepared(x, labels, keep)
    call = backends.Call(weight, bias, class_weight, rows, settings, group, labels.shape, (False, False))
    return backends.problem_of(call, backends.PASSES[backend]())(x, weight, bias)


def _filled(found: Gradients, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """An operator returns tensors: empty ones where there is no gradient."""
    gx, gw, gb = (x.new_empty(0) if g is None else g for g in cast(found, x, weight, bias))
    return gx, gw, gb


@torch.library.custom_op("softgate::fused_linear_reduced", mutates_args=())
def _reduced(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    class_weight: Tensor | None,
    words: str,
    floats: list[float],
    ints: list[int],
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    p = _problem(x, weight, bias, labels, class_weight, words, floats, ints)
    outcome, sums = chunks.loss_and_gradients(p, (needed[0], needed[1], needed[2]))
    loss = (outcome.loss.sum() / p.denominator()).to(p.wide)
    lse, hit = scatter_rows(p, outcome.lse).to(p.wide), scatter_rows(p, outcome.hit)
    return (loss, lse, hit, *_filled(sums, x, weight, bias))


@_reduced.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    class_weight: Tensor | None,
    words: str,
    floats: list[float],
    ints: list[int],
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = _wide(x, weight, words)
    sizes = [torch.empty_like(t) if need and t is not None else x.new_empty(0)
             for t, need in zip((x, weight, bias), needed, strict=True)]  # fmt: skip
    row = x.new_empty(labels.shape, dtype=wide)
    gx, gw, gb = (t.contiguous() for t in sizes)
    return x.new_empty((), dtype=wide), row, row.new_empty(labels.shape, dtype=torch.bool), gx, gw, gb


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.needed = inputs[-1]
    ctx.save_for_backward(*output[3:])


def _scale_gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    ready = (g * grad.to(g.dtype) if need else None for g, need in zip(ctx.saved_tensors, ctx.needed, strict=True))
    return (*ready, None, None, None, None, None, None)


_reduced.register_autograd(_scale_gradients, setup_context=_keep_gradients)


@torch.library.custom_op("softgate::fused_linear_rows", mutates_args=())
def _rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    class_weight: Tensor | None,
    words: str,
    floats: list[float],
    ints: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    p = _problem(x, weight, bias, labels, class_weight, words, floats, ints)
    outcome = chunks.losses(p)
    loss, lse = (scatter_rows(p, values).to(p.wide) for values in (outcome.loss, outcome.lse))
    return loss, lse, scatter_rows(p, outcome.hit)


@_rows.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    class_weight: Tensor | None,
    words: str,
    floats: list[float],
    ints: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    wide = _wide(x, weight, words)
    loss, lse = (x.new_empty(labels.shape, dtype=wide) for _ in range(2))
    return loss, lse, x.new_empty(labels.shape, dtype=torch.bool)


@torch.library.custom_op("softgate::fused_linear_row_gradients", mutates_args=())
def _row_gradients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    class_weight: Tensor | None,
    words: str,
    floats: list[float],
    ints: list[int],
    grad: Tensor,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    p = _problem(x, weight, bias, labels, class_weight, words, floats, ints)
    found = chunks.gradients(p, (needed[0], needed[1], needed[2]), row_gradients(p, grad))
    return _filled(found, x, weight, bias)


@_row_gradients.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    class_weight: Tensor | None,
    words: str,
    floats: list[float],
    ints: list[int],
    grad: Tensor,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    gx, gw, gb = (x.new_empty(0) if t is None or not need else t.new_empty(t.shape)
                  for t, need in zip((x, weight, bias), needed, strict=True))  # fmt: skip
    return gx, gw, gb


def _keep_operands(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _differentiate_rows(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    needed = list(ctx.needs_input_grad[:3])
    found = torch.ops.softgate.fused_linear_row_gradients(*ctx.saved_tensors, *ctx.options, grad.contiguous(), needed)
    return (*(g if need else None for g, need in zip(found, needed, strict=True)), None, None, None, None, None)


_rows.register_autograd(_differentiate_rows, setup_context=_keep_operands)
