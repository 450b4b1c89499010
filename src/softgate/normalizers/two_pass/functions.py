"""The public functions: softmax, log_softmax and logsumexp."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from softgate import dispatch, native
from softgate.normalizers.two_pass import kernel
from softgate.normalizers.two_pass.arguments import check_arguments
from softgate.normalizers.two_pass.reference import (
    log_softmax_reference,
    logsumexp_reference,
    softmax_reference,
)
from softgate.registry import Kernel, Method, method

__all__ = ["log_softmax", "logsumexp", "softmax"]

PAPER = "two-pass-softmax"
SOURCE = "section 3 (ExtExp, pair addition, two passes); baselines of section 2"
VARIANTS: dict[str, dict[str, str]] = {"default": {}} | {
    name: {"algorithm": name} for name in ("two_pass", "three_pass_recompute", "three_pass_reload", "online", "torch")
}
DEVIATIONS = (
    "inputs below about -2.9e6, -inf among them, are clamped there, and rows whose largest entry is beyond 1.4e6 in "
    "magnitude are recomputed by the blocked online form; the published kernels give NaN",
    "float32 partial sums are folded into a double every 1024 entries, the polynomial of ExtExp has one degree more "
    "and the last step is a division, so that errors stay within 4 ULP at any length and a lone entry gives exactly 1",
)


def _bad_options() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x = torch.linspace(-2, 2, 6).reshape(2, 3)
    for algorithm in ("fast", "", "Auto", None, 1, True, ["auto"]):
        error = ValueError if isinstance(algorithm, str) else TypeError
        yield (x,), {"algorithm": algorithm}, error, "algorithm"
    for empty in ("zeros", "", None, 0):
        yield (x,), {"empty": empty}, ValueError if isinstance(empty, str) else TypeError, "empty"
    for threads in (0, -1):
        yield (x,), {"num_threads": threads}, ValueError, "num_threads"
    for other in (1.5, "2", True, [1]):
        yield (x,), {"num_threads": other}, TypeError, "num_threads"
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, float, "float32"):
        yield (x,), {"dtype": dtype}, ValueError, "dtype"


def _never(op: int, x: Any, out: Any, dim: Any) -> bool:
    return False


def _short_way() -> Callable[[int, Any, Any, Any], bool]:
    """The extension's own check-and-run, which costs a third of torch's dispatcher; it says False when unsure."""
    if not native.available():
        return _never
    exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    kernels = native.kernels()
    return kernels.eager if kernels.bind_torch(Tensor, exchange, torch.get_num_threads) else _never


_eager = _short_way()
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_tracing = torch._C._is_tracing


@method(
    site="normalizers",
    family="row_map",
    paper=PAPER,
    source=SOURCE,
    reference=softmax_reference,
    kernels=(Kernel("native", kernel.run_softmax, kernel.refuses),),
    variants=VARIANTS,
    laws=(
        "sums_to_one",
        "nonnegative",
        "shift_invariant",
        "permutation_equivariant",
        "order_preserving",
        "masked_equals_removed",
        "gradient_sums_to_zero",
    ),
    output_range=(0.0, 1.0),
    masked_rows="nan",
    bad_inputs=_bad_options,
    deviations=DEVIATIONS,
)
def softmax(
    x: Tensor,
    dim: int = -1,
    *,
    algorithm: str = "auto",
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    empty: str = "nan",
    num_threads: int | None = None,
) -> Tensor:
    """Softmax along ``dim``: ``exp(x_i) / sum_j exp(x_j)``, exact to a few units in the last place at any length.

    Args:
        x: scores of any shape, float64, float32, bfloat16 or float16 (half precisions are computed in float32).
        dim: the dimension that sums to one.
        algorithm: how the CPU kernels do it, never what they compute. ``"two_pass"`` (the paper's; best where a row
            does not fit the caches), ``"three_pass_recompute"``, ``"three_pass_reload"`` (best in cache),
            ``"online"`` (blocked), ``"torch"``; ``"auto"`` takes the fastest for the length of the rows. Where the
            kernels cannot run (:func:`softgate.explain` says why) torch computes it.
        out: receives the result; may be ``x`` itself. A new tensor costs more than the arithmetic for long rows.
        dtype: convert ``x`` first.
        empty: what a row with nothing but ``-inf`` gives: ``"nan"`` (as torch) or ``"zero"``.
        num_threads: at most this many threads, ``torch.get_num_threads()`` if None. Bits do not depend on it.

    Returns:
        A tensor like ``x``. ``-inf`` gives exactly 0; NaN or ``+inf`` anywhere makes the whole row NaN.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Example:
        >>> import torch, softgate
        >>> softgate.normalizers.softmax(torch.tensor([0.0, 0.0, float("-inf")]))
        tensor([0.5000, 0.5000, 0.0000])

    Source: arXiv 2001.04438, algorithms 1-3; blocked online form after arXiv 1805.02867.
    """
    if (
        out is not None
        and algorithm == "auto"
        and dtype is None
        and empty == "nan"
        and num_threads is None
        and not _is_dynamo_compiling()
        and forward_ad._current_level < 0
        and not _dispatch_modes()
        and not _is_tracing()
        and _eager(kernel.SOFTMAX, x, out, dim)
    ):
        return out
    check_arguments(x, dim, algorithm, out, dtype, empty, num_threads, reduces=False)
    return _call(softmax, x, dim, algorithm, out, dtype, empty, num_threads)


@method(
    site="normalizers",
    family="row_map",
    paper=PAPER,
    source=SOURCE,
    reference=log_softmax_reference,
    kernels=(Kernel("native", kernel.run_log_softmax, kernel.refuses),),
    variants=VARIANTS,
    laws=("exponentials_sum_to_one", "permutation_equivariant", "masked_equals_removed"),
    output_range=(float("-inf"), 0.0),
    error_scale="logarithm",
    masked_rows="nan",
    bad_inputs=_bad_options,
    deviations=DEVIATIONS,
)
def log_softmax(
    x: Tensor,
    dim: int = -1,
    *,
    algorithm: str = "auto",
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    empty: str = "nan",
    num_threads: int | None = None,
) -> Tensor:
    """Log-softmax along ``dim``: ``x_i - log sum_j exp(x_j)``.

    The log-sum-exp is kept as a sum of two floats, so that large scores lose nothing in the difference. There is
    nothing to reload: ``"three_pass_reload"`` runs as ``"three_pass_recompute"``. A pair's rounded mantissa would show
    in log-probabilities near 0: ``"two_pass"`` runs as ``"online"``, which reads as much.

    Args:
        x: scores of any shape, float64, float32, bfloat16 or float16.
        dim: the dimension whose exponentials sum to one.
        algorithm: as in :func:`softmax`.
        out: receives the result; may be ``x`` itself.
        dtype: convert ``x`` first.
        empty: what a row with nothing but ``-inf`` gives: ``"nan"`` (as torch) or ``"zero"``, that is ``log 0 = -inf``.
        num_threads: at most this many threads, ``torch.get_num_threads()`` if None. Bits do not depend on it.

    Returns:
        A tensor like ``x``. ``-inf`` gives ``-inf``; NaN or ``+inf`` anywhere makes the whole row NaN.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Source: arXiv 2001.04438, section 3.
    """
    if (
        out is not None
        and algorithm == "auto"
        and dtype is None
        and empty == "nan"
        and num_threads is None
        and not _is_dynamo_compiling()
        and forward_ad._current_level < 0
        and not _dispatch_modes()
        and not _is_tracing()
        and _eager(kernel.LOG_SOFTMAX, x, out, dim)
    ):
        return out
    check_arguments(x, dim, algorithm, out, dtype, empty, num_threads, reduces=False)
    return _call(log_softmax, x, dim, algorithm, out, dtype, empty, num_threads)


@method(
    site="normalizers",
    family="row_reduction",
    paper=PAPER,
    source=SOURCE,
    reference=logsumexp_reference,
    kernels=(Kernel("native", kernel.run_logsumexp, kernel.refuses),),
    variants=VARIANTS,
    laws=("shift_equivariant", "permutation_invariant", "maximum_bounds", "masked_equals_removed"),
    bad_inputs=_bad_options,
    deviations=DEVIATIONS,
)
def logsumexp(
    x: Tensor,
    dim: int = -1,
    *,
    algorithm: str = "auto",
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    empty: str = "nan",
    num_threads: int | None = None,
) -> Tensor:
    """Log-sum-exp along ``dim``: ``log sum_j exp(x_j)``, in one pass over ``x``.

    Args:
        x: scores of any shape, float64, float32, bfloat16 or float16.
        dim: the dimension that is reduced.
        algorithm: as in :func:`softmax`; the two three-pass forms are the same here.
        out: receives the result.
        dtype: convert ``x`` first.
        empty: accepted for symmetry; a row with nothing but ``-inf`` (or no entry) gives ``-inf`` either way.
        num_threads: at most this many threads, ``torch.get_num_threads()`` if None. Bits do not depend on it.

    Returns:
        A tensor with the shape of ``x`` without ``dim``. NaN anywhere gives NaN, else ``+inf`` anywhere ``+inf``.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Source: arXiv 2001.04438, section 3: ``ln(m) + n ln 2`` of the summed pair.
    """
    check_arguments(x, dim, algorithm, out, dtype, empty, num_threads, reduces=True)
    return _call(logsumexp, x, dim, algorithm, out, dtype, empty, num_threads)


def _call(
    function: Callable[..., Tensor],
    x: Tensor,
    dim: int,
    algorithm: str,
    out: Tensor | None,
    dtype: torch.dtype | None,
    empty: str,
    num_threads: int | None,
) -> Tensor:
    record: Method = function.__softgate__  # type: ignore[attr-defined]
    result: Tensor = dispatch.call(
        record, x, dim, algorithm=algorithm, out=out, dtype=dtype, empty=empty, num_threads=num_threads
    )
    return result
