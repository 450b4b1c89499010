"""Faulty softmaxes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import honest_ops as honest
import numpy as np
import torch
from mutant import mutant
from torch import Tensor


def rows(fault: str, caught_by: str, *, base: Any = honest.softmax, alone: bool = False) -> Callable[[Any], Any]:
    return mutant(base, fault, caught_by, alone=alone)


@rows("wrong sign", "law[order_preserving]", alone=True)
@rows("wrong sign", "reference[float32-primes]")
def wrong_sign(x: Tensor, dim: int = -1) -> Tensor:
    return (-x).softmax(dim)


@rows("wrong dimension", "reference[float32-every_dim]")
def wrong_dim(x: Tensor, dim: int = -1) -> Tensor:
    return x.softmax(-1)


@rows("no maximum subtracted", "reference[float32-wide_logits]")
@rows("no maximum subtracted", "law[sums_to_one]", alone=True)
def overflow(x: Tensor, dim: int = -1) -> Tensor:
    e = x.exp()
    return e / e.sum(dim, keepdim=True)


@rows("last entry left out of the sum", "law[sums_to_one]", alone=True)
def off_by_one(x: Tensor, dim: int = -1) -> Tensor:
    e = (x - x.amax(dim, keepdim=True)).exp()
    return e / e.narrow(dim, 0, max(x.shape[dim] - 1, 1)).sum(dim, keepdim=True)


@rows("tail of less than eight entries left out of the sum", "reference[float32-around_powers_of_two]")
def lost_tail(x: Tensor, dim: int = -1) -> Tensor:
    length = x.shape[dim]
    e = (x - x.amax(dim, keepdim=True)).exp()
    return e / e.narrow(dim, 0, max(length - length % 8, 1)).sum(dim, keepdim=True)


@rows("float32 computed in bfloat16", "reference[float32-primes]")
def low_precision(x: Tensor, dim: int = -1) -> Tensor:
    return x.to(torch.bfloat16).softmax(dim).to(x.dtype)


@rows("16-bit sums accumulated in 16 bits", "reference[bfloat16-long_rows]")
def low_accumulation(x: Tensor, dim: int = -1) -> Tensor:
    e = (x - x.amax(dim, keepdim=True)).exp() if x.numel() else x
    total = torch.zeros_like(e.sum(dim, keepdim=True))
    for part in e.split(64, dim if x.ndim else 0) if x.ndim else (e,):
        total = total + part.sum(dim, keepdim=True)
    return e / total


@rows("16-bit input comes back as float32", "reference[bfloat16-primes]")
def promoted(x: Tensor, dim: int = -1) -> Tensor:
    return x.float().softmax(dim) if x.dtype.itemsize < 4 else x.softmax(dim)


@rows("strides ignored", "reference[float32-non_contiguous]")
def strides_ignored(x: Tensor, dim: int = -1) -> Tensor:
    dense = torch.empty(x.shape).stride()
    inside = x.storage_offset() + x.numel() <= x.untyped_storage().nbytes() // x.itemsize
    return (x.as_strided(x.shape, dense) if inside else x).softmax(dim)


@rows("NaN dropped", "law[nan_is_not_dropped]", alone=True)
def nan_dropped(x: Tensor, dim: int = -1) -> Tensor:
    return x.nan_to_num(0.0).softmax(dim)


@rows("maximum of the whole batch subtracted", "law[row_independent]", alone=True)
def batch_maximum(x: Tensor, dim: int = -1) -> Tensor:
    e = (x - x.amax()).exp()
    return e / e.sum(dim, keepdim=True)


@rows("result of the first row in every row", "law[row_independent]", alone=True)
def first_row(x: Tensor, dim: int = -1) -> Tensor:
    y = x.softmax(dim)
    return y[:1].expand_as(y).clone() if x.ndim > 1 else y


@rows("masked entries clamped to -30", "law[masked_equals_removed]", alone=True)
@rows("masked entries clamped to -30", "law[masked_gradient_is_zero]", alone=True)
def leaking_mask(x: Tensor, dim: int = -1) -> Tensor:
    return x.clamp(min=-30).softmax(dim)


@rows("fully masked row gives NaN where zeros are promised", "law[fully_masked_rows]", base=honest.softmax_zeros)
def masked_row_nan(x: Tensor, dim: int = -1) -> Tensor:
    return x.softmax(dim)


@rows("fully masked row gives a uniform row", "law[fully_masked_rows]", alone=True)
def masked_row_uniform(x: Tensor, dim: int = -1) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).min).softmax(dim)


@rows("temperature of 1.001", "law[sums_to_one]", alone=True)
def not_normalised(x: Tensor, dim: int = -1) -> Tensor:
    return x.softmax(dim) * 1.001


@rows("not shift invariant", "law[shift_invariant]", alone=True)
def not_shift_invariant(x: Tensor, dim: int = -1) -> Tensor:
    return (x * (1 + 1e-3 * x.abs().tanh())).softmax(dim)


@rows("depends on the position in the row", "law[permutation_equivariant]", alone=True)
def positional(x: Tensor, dim: int = -1) -> Tensor:
    ramp = torch.linspace(0, 1e-3, x.shape[dim] if x.ndim else 1).to(x.dtype)
    return (x + ramp).softmax(dim) if dim in (-1, x.ndim - 1) and x.ndim else x.softmax(dim)


@rows("slightly above the range", "law[in_range]", alone=True)
def above_range(x: Tensor, dim: int = -1) -> Tensor:
    return x.softmax(dim) + 2e-6


class _ZeroTangent(torch.autograd.Function):
    """Right values and gradients, a forward derivative of zero: what an opaque custom op gives."""

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        return x.softmax(dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)
        ctx.dim = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return y * (g - (g * y).sum(ctx.dim, keepdim=True)), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return torch.zeros_like(tangent)


@rows("forward derivative is zero", "gradcheck")
@rows("forward derivative is zero", "jvp")
@rows("forward derivative is zero", "jacrev_equals_jacfwd")
def zero_tangent(x: Tensor, dim: int = -1) -> Tensor:
    return _ZeroTangent.apply(x, dim)


class _KernelOnlyInFloat32(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        y = x.softmax(dim)
        ctx.save_for_backward(y)
        ctx.dim = dim
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return y * (g - (g * y).sum(ctx.dim, keepdim=True)), None


@rows("no forward derivative in the float32 kernel", "jvp")
@rows("the float32 kernel's gradient cannot be differentiated", "double_backward")
@rows("vmap fails in the float32 kernel", "vmap")
def opaque_float32(x: Tensor, dim: int = -1) -> Tensor:
    return _KernelOnlyInFloat32.apply(x, dim) if x.dtype == torch.float32 else x.softmax(dim)


@rows("backward cannot be differentiated", "gradgradcheck")
def opaque(x: Tensor, dim: int = -1) -> Tensor:
    return _KernelOnlyInFloat32.apply(x, dim)


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        y = x.softmax(dim)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return y * g, None  # the sum over the row is missing


@rows("term missing in the gradient", "gradcheck")
@rows("term missing in the gradient", "gradient[float32-primes]")
@rows("term missing in the gradient", "law[gradient_sums_to_zero]", alone=True)
def wrong_gradient(x: Tensor, dim: int = -1) -> Tensor:
    return _WrongGradient.apply(x, dim)


@rows("gradient wrong in bfloat16 only", "gradient[bfloat16-primes]")
def wrong_bfloat16_gradient(x: Tensor, dim: int = -1) -> Tensor:
    return _WrongGradient.apply(x, dim) if x.dtype == torch.bfloat16 else x.softmax(dim)


@rows("input overwritten", "inputs_untouched")
def in_place(x: Tensor, dim: int = -1) -> Tensor:
    with torch.no_grad():
        if not torch._C._functorch.is_functorch_wrapped_tensor(x):
            x.sub_(x.amax(dim, keepdim=True))
    return x.softmax(dim)


@rows("input returned for one entry", "no_alias")
def aliased(x: Tensor, dim: int = -1) -> Tensor:
    y = x.softmax(dim)
    with torch.no_grad():
        x.copy_(y)
    return x


@rows("uninitialised memory read", "no_uninitialised_memory")
def uninitialised(x: Tensor, dim: int = -1) -> Tensor:
    return torch.empty_like(x).clamp(0, 0) + x.softmax(dim)


@rows("uninitialised numpy buffer read", "no_uninitialised_memory")
def uninitialised_numpy(x: Tensor, dim: int = -1) -> Tensor:
    return x.softmax(dim) + torch.from_numpy(np.empty(1, dtype=np.float32)).clamp(0, 0).to(x.dtype)


@rows("noise from call to call", "deterministic")
def noisy(x: Tensor, dim: int = -1) -> Tensor:
    return x.softmax(dim) * (1 + 1e-3 * (time.perf_counter_ns() % 1009))


_SCRATCH: dict[str, Tensor] = {}


@rows("scratch buffer shared by all threads", "threads")
def shared_scratch(x: Tensor, dim: int = -1) -> Tensor:
    _SCRATCH["x"] = torch.zeros_like(x)
    time.sleep(1e-4)
    _SCRATCH["x"] += x
    time.sleep(1e-4)
    return _SCRATCH["x"].softmax(dim)


@rows("numpy's error state changed", "global_state")
def changes_numpy(x: Tensor, dim: int = -1) -> Tensor:
    np.seterr(under="raise")
    return x.softmax(dim)


@rows("graph kept without need", "no_needless_graph")
def needless_graph(x: Tensor, dim: int = -1) -> Tensor:
    return x.softmax(dim) * torch.ones((), dtype=x.dtype, requires_grad=True)


@rows("value read back to Python", "vmap")
@rows("value read back to Python", "meta_shape")
@rows("value read back to Python", "export")
def reads_value(x: Tensor, dim: int = -1) -> Tensor:
    largest = float(x.detach().amax()) if x.numel() else 0.0
    return (x - largest).softmax(dim)


@rows("branch on a value", "compile[fullgraph]")
@rows("branch on a value", "compile[dynamic_shapes]")
@rows("branch on a value", "fake_tensor")
def branches(x: Tensor, dim: int = -1) -> Tensor:
    if x.detach().sum() > 0:
        return x.softmax(dim)
    return (x - x.detach().amax(dim, keepdim=True)).softmax(dim)


@rows("integers accepted silently", "bad_input[x]")
def accepts_integers(x: Tensor, dim: int = -1) -> Tensor:
    return honest.softmax(x.float() if isinstance(x, Tensor) and not x.is_floating_point() else x, dim)


@rows("dim=True accepted silently", "bad_input[dim]")
def accepts_bool(x: Tensor, dim: int = -1) -> Tensor:
    return honest.softmax(x, int(dim) if isinstance(dim, bool) else dim)


@rows("bare IndexError for a dim out of range", "bad_input[dim]")
def bare_index_error(x: Tensor, dim: int = -1) -> Tensor:
    return x.softmax(dim)


@rows("error that does not name the argument", "bad_input[dim]")
def nameless_error(x: Tensor, dim: int = -1) -> Tensor:
    from softgate.errors import ArgumentValueError, SoftgateError

    try:
        return honest.softmax(x, dim)
    except SoftgateError:
        raise ArgumentValueError("invalid argument") from None
