"""Sums of exponentials as (mantissa, exponent) pairs that cannot overflow and can be merged across shards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate import dispatch, native
from softgate._checks import check_float_tensor
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type
from softgate.normalizers.two_pass import kernel
from softgate.normalizers.two_pass.arguments import check_arguments
from softgate.normalizers.two_pass.reference import pair_reference
from softgate.registry import Kernel, Method, method

__all__ = ["logsumexp_pair", "merge_pairs"]

Pair = tuple[Tensor, Tensor]


def _run_pair(x: Tensor, dim: int = -1) -> Pair:
    x = x.detach().resolve_neg().movedim(dim, -1).contiguous() if x.ndim else x.detach().resolve_neg().reshape(1)
    n, shape = x.shape[-1], x.shape[:-1]
    mantissa = torch.empty(shape, dtype=torch.float32)
    exponent = torch.empty_like(mantissa)
    native.kernels().pairs(
        kernel.DTYPES[x.dtype],
        x.data_ptr(),
        mantissa.data_ptr(),
        exponent.data_ptr(),
        mantissa.numel(),
        n,
        torch.get_num_threads(),
    )
    return mantissa, exponent


def _refuses_pair(x: Tensor, dim: int = -1) -> str | None:
    if torch.is_grad_enabled() and x.requires_grad:
        return "a gradient is needed"
    if x.ndim and x.shape[dim] == 0:
        return "there is nothing to sum"
    return kernel.refuses(x, dim)


@method(
    site="normalizers",
    family="row_reduction",
    paper="two-pass-softmax",
    source="section 3: pass 1 and its reduction across lanes",
    reference=pair_reference,
    kernels=(Kernel("native", _run_pair, _refuses_pair),),
    laws=("permutation_invariant",),
)
def logsumexp_pair(x: Tensor, dim: int = -1) -> Pair:
    """Sum of exponentials along ``dim`` as a pair: ``sum_j exp(x_j) = mantissa * 2^exponent``.

    The exponent is ``round(max(x) / ln 2)``, so the mantissa lies between about 0.7 and 1.42 times the number of
    entries and neither over- nor underflows. ``logsumexp = log(mantissa) + exponent * ln 2``.

    Args:
        x: scores of any shape, float64, float32, bfloat16 or float16.
        dim: the dimension that is reduced.

    Returns:
        ``(mantissa, exponent)``, each with the shape of ``x`` without ``dim``, float32 (float64 for float64). A row
        with nothing but ``-inf`` gives ``(0, -inf)``, the neutral element of :func:`merge_pairs`; NaN and ``+inf``
        give a NaN mantissa, and so do rows whose largest entry is beyond 1.4e6 in magnitude, where a float becomes
        too coarse for exponents. The gradient flows through the mantissa.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Source: arXiv 2001.04438, section 3.
    """
    check_arguments(x, dim, "auto", None, None, "nan", None, reduces=True)
    record: Method = logsumexp_pair.__softgate__  # type: ignore[attr-defined]
    result: Pair = dispatch.call(record, x, dim)
    return result


def _pair_samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for shape in ((), (5,), (2, 3)):
        pairs = []
        for _ in range(2):
            mantissa = torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) + 0.5
            exponent = torch.randint(-20, 20, shape, generator=generator).to(dtype)
            pairs.append((mantissa, exponent))
        yield tuple(pairs), {}


def _bad_pairs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    one = torch.ones(3)
    good = (one, one)
    for bad in (None, one, (one,), [one, one, one], "ab", 1.0, {"m": one, "n": one}):
        yield (bad, good), {}, TypeError, "a must"
        yield (good, bad), {}, TypeError, "b must"
    for entry in (None, 1.0, one.long(), one.bool(), one.to(torch.complex64), one.to_sparse()):
        yield ((entry, one), good), {}, TypeError, "mantissa of a"
        yield (good, (one, entry)), {}, TypeError, "exponent of b"
    yield ((one, torch.ones(2)), good), {}, ValueError, "exponent of a"
    yield ((one, one), (torch.ones(2), torch.ones(2))), {}, ValueError, "broadcast"
    yield ((one, one), (one.double(), one.double())), {}, TypeError, "dtype"


@method(
    site="normalizers",
    family="custom",
    paper="two-pass-softmax",
    source="section 3: pair addition",
    samples=_pair_samples,
    bad_inputs=_bad_pairs,
)
def merge_pairs(a: Pair, b: Pair) -> Pair:
    """Sum of two pairs of :func:`logsumexp_pair`, entry by entry: the pair of the two shards together.

    ``(m_a, n_a) + (m_b, n_b) = (m_a 2^(n_a - n) + m_b 2^(n_b - n), n)`` with ``n = max(n_a, n_b)``. Commutative;
    associative up to rounding; ``(0, -inf)`` is neutral.

    Args:
        a: mantissa and exponent, of one shape and dtype.
        b: another pair, whose shape broadcasts with that of ``a``.

    Returns:
        The merged pair.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Source: arXiv 2001.04438, section 3.
    """
    for name, pair in (("a", a), ("b", b)):
        _check_pair(name, pair)
    (mantissa_a, exponent_a), (mantissa_b, exponent_b) = a, b
    if mantissa_a.dtype != mantissa_b.dtype:
        raise ArgumentTypeError(f"a and b must have one dtype, got {mantissa_a.dtype} and {mantissa_b.dtype}")
    try:
        torch.broadcast_shapes(mantissa_a.shape, mantissa_b.shape)
    except RuntimeError:
        shapes = f"{tuple(mantissa_a.shape)} and {tuple(mantissa_b.shape)}"
        raise ArgumentValueError(f"a and b must have shapes that broadcast, got {shapes}") from None
    top = torch.maximum(exponent_a, exponent_b)
    finite = top.masked_fill(top == -math.inf, 0.0)
    mantissa = torch.ldexp(mantissa_a, exponent_a - finite) + torch.ldexp(mantissa_b, exponent_b - finite)
    return mantissa, top


def _check_pair(name: str, pair: Any) -> None:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        bad_type(name, pair, "a pair (mantissa, exponent)")
    for part, tensor in zip(("mantissa", "exponent"), pair, strict=True):
        check_float_tensor(f"{part} of {name}", tensor)
    mantissa, exponent = pair
    if mantissa.shape != exponent.shape or mantissa.dtype != exponent.dtype:
        expected = f"{tuple(mantissa.shape)} {mantissa.dtype} like its mantissa"
        raise ArgumentValueError(f"exponent of {name} must be {expected}, got {tuple(exponent.shape)} {exponent.dtype}")
