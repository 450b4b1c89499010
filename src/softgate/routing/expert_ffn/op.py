"""The experts' layer as one operator of torch: what compile, export and FSDP see.

``softgate::moe_ffn`` gives the output and what backward needs (h, the order of the assignments); the gradients are a
second operator. A gradient of gradients goes through the plain-torch reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._math.double_backward import differentiable_gradients
from softgate._math.masks import accumulation_dtype
from softgate.dispatch import is_batched_gradient
from softgate.errors import StateError
from softgate.routing.expert_ffn import compute
from softgate.routing.expert_ffn.compute import Experts
from softgate.routing.expert_ffn.plan import Plan, check_range
from softgate.routing.expert_ffn.products import grouped_refuses
from softgate.routing.expert_ffn.reference import moe_ffn_reference

#: The backends of the operator, in order of preference.
BACKENDS = ("bmm", "grouped", "sorted")
#: Up to so many assignments an accelerator copies matrices rather than sort.
_GATHER_ROWS = 16


def refuses(
    backend: str, x: Tensor, gate_up: Tensor, down: Tensor, rows: int, keep: bool, *, forced: bool
) -> str | None:
    """Why ``backend`` cannot compute this, or (unless ``forced``) why it should not."""
    if backend == "sorted":
        return None
    reason = grouped_refuses(x, gate_up, down) if backend == "grouped" else None
    if reason is not None or forced:
        return reason
    if x.device.type == "cpu":
        return "on the CPU one product per expert, in blocks that fit its caches, is faster"
    if backend == "grouped":
        return "16-bit tensors only: grouped_mm has no fast float32" if x.dtype.itemsize > 2 else None
    if rows > _GATHER_ROWS:
        return f"it copies a matrix for each of {rows} assignments"
    return "it copies the matrices again in backward" if keep else None


def _resolve(backend: str, x: Tensor, experts: Experts, rows: int, keep: bool) -> str:
    """The backend that runs; the same for forward and backward of one call."""
    named = (x, experts.gate_up, experts.down, rows, keep)
    if backend == "auto":
        return next(name for name in BACKENDS if refuses(name, *named, forced=False) is None)
    reason = refuses(backend, *named, forced=True)
    if reason is not None:
        raise StateError(f"backend={backend!r} cannot run this call: {reason}")
    return backend


def _forward(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    indices: Tensor,
    weights: Tensor,
    activation: str,
    backend: str,
    keep: bool,
    train: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    experts = Experts(gate_up, down, gate_up_bias, down_bias)
    check_range(indices, gate_up.shape[0])
    chosen = _resolve(backend, x, experts, indices.numel(), train)
    y, h, plan = compute.forward(x, experts, indices, weights, activation, chosen, keep)
    return y, h, plan.order, plan.ends


def _backward(
    grad: Tensor,
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    indices: Tensor,
    weights: Tensor,
    h: Tensor,
    order: Tensor,
    ends: Tensor,
    activation: str,
    backend: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    experts = Experts(gate_up, down, gate_up_bias, down_bias)
    chosen = _resolve(backend, x, experts, indices.numel(), True)
    plan = Plan(order, ends, compute.sorts(chosen, indices.numel()))
    return compute.backward(grad, x, experts, indices, weights, h, plan, activation, chosen, tuple(needs))  # type: ignore[return-value]


_TENSORS = (
    "Tensor x, Tensor gate_up, Tensor down, Tensor? gate_up_bias, Tensor? down_bias, Tensor indices, Tensor weights"
)
forward_op = torch.library.custom_op(
    "softgate::moe_ffn",
    _forward,
    mutates_args=(),
    schema=f"({_TENSORS}, str activation, str backend, bool keep, bool train) -> (Tensor, Tensor, Tensor, Tensor)",
)
backward_op = torch.library.custom_op(
    "softgate::moe_ffn_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor grad, {_TENSORS}, Tensor h, Tensor order, Tensor ends, str activation, str backend, bool[] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@forward_op.register_fake
def _forward_fake(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    indices: Tensor,
    weights: Tensor,
    activation: str,
    backend: str,
    keep: bool,
    train: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = indices.shape[0] * indices.shape[1]
    return (
        x.new_empty(x.shape),
        x.new_empty(rows if keep else 0, gate_up.shape[1]),
        indices.new_empty(rows),
        indices.new_empty(gate_up.shape[0]),
    )


@backward_op.register_fake
def _backward_fake(
    grad: Tensor,
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    indices: Tensor,
    weights: Tensor,
    h: Tensor,
    order: Tensor,
    ends: Tensor,
    activation: str,
    backend: str,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    tensors = (x, gate_up, down, gate_up_bias, down_bias, weights)
    return tuple(
        x.new_empty(0) if t is None or not need else t.new_empty(t.shape)
        for t, need in zip(tensors, needs, strict=True)
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, activation, backend, _, _ = inputs
    _, h, order, ends = output
    ctx.save_for_backward(*tensors, h, order, ends)
    ctx.activation, ctx.backend = activation, backend
    ctx.mark_non_differentiable(h, order, ends)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad = grads[0]
    if grad is None:
        return (None,) * 11
    *tensors, h, order, ends = ctx.saved_tensors
    place = (0, 1, 2, 3, 4, 6)
    needs = [bool(ctx.needs_input_grad[i]) for i in place]
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        found = _differentiable(ctx.activation, tensors, needs, grad)
    else:
        # batched gradients need the operator's rule for vmap; without them its dispatch only costs time
        direct = not torch.compiler.is_compiling() and not is_batched_gradient(grad) and type(grad) is Tensor
        compute_gradients: Any = _backward if direct else backward_op
        found = compute_gradients(grad.contiguous(), *tensors, h, order, ends, ctx.activation, ctx.backend, needs)
        found = tuple(g if need else None for g, need in zip(found, needs, strict=True))
    dx, dgate_up, ddown, dgate_up_bias, ddown_bias, dweights = found
    return dx, dgate_up, ddown, dgate_up_bias, ddown_bias, None, dweights, None, None, None, None


def _differentiable(activation: str, tensors: list[Any], needs: list[bool], grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again."""
    *arguments, indices, weights = tensors

    def reference(*values: Any) -> Tensor:
        x, gate_up, down, gate_up_bias, down_bias, weight = values
        return moe_ffn_reference(x, gate_up, down, indices, weight, gate_up_bias, down_bias, activation=activation)

    return differentiable_gradients(reference, [*arguments, weights], needs, grad)


forward_op.register_autograd(_differentiate, setup_context=_setup)


class _Eager(torch.autograd.Function):
    """The operator without torch's dispatcher, which takes longer than a handful of tokens."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _forward(*inputs)
        *tensors, activation, backend, _, _ = inputs
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.activation, ctx.backend = activation, backend
        return output[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _differentiate(ctx, *grads)


def run(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    activation: str = "swiglu",
    recompute: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Arguments and result of :func:`softgate.routing.moe_ffn`."""
    shape = x.shape
    tensors = (x, gate_up, down, gate_up_bias, down_bias, weights)
    train = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    weights = weights.to(accumulation_dtype(x.dtype)).reshape(-1, weights.shape[-1])
    rows, indices = x.reshape(-1, shape[-1]), indices.reshape(-1, indices.shape[-1])
    inputs = (rows, gate_up, down, gate_up_bias, down_bias, indices, weights)
    options = (activation, backend, train and not recompute, train)
    if torch.compiler.is_compiling():
        return forward_op(*inputs, *options)[0].view(shape)
    y = _Eager.apply(*inputs, *options) if train else _forward(*inputs, *options)[0]  # type: ignore[no-untyped-call]
    return y.view(shape)
