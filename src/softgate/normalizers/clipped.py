"""Clipped softmax: softmax stretched beyond [0, 1] and clipped, so that finite scores give weights of exactly 0."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from softgate import dispatch
from softgate._checks import check_dim, check_float_tensor
from softgate._math.clipping import check_stretch, resolve_gamma, stretch_and_clip
from softgate._math.masks import accumulation_dtype
from softgate.errors import ArgumentValueError, bad_type, bad_value
from softgate.normalizers.two_pass import kernel
from softgate.normalizers.two_pass.reference import softmax_reference
from softgate.registry import Kernel, method, record_of

__all__ = ["ClippedSoftmax", "clipped_softmax"]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _reference(x: Tensor, dim: int = -1, gamma: float = -0.03, zeta: float = 1.0) -> Tensor:
    """The formula by torch's softmax, in float32 for 16-bit scores: bfloat16 could not tell 0.999 from 1."""
    p = softmax_reference(x, dim, dtype=accumulation_dtype(x.dtype), empty="zero")
    return stretch_and_clip(p, gamma, zeta).to(x.dtype)


def _native(x: Tensor, dim: int = -1, gamma: float = -0.03, zeta: float = 1.0) -> Tensor:
    """The same by the two-pass kernels."""
    p = kernel.run_softmax(x, dim, dtype=accumulation_dtype(x.dtype), empty="zero")
    return stretch_and_clip(p, gamma, zeta).to(x.dtype)


def _native_refuses(x: Tensor, dim: int = -1, gamma: float = -0.03, zeta: float = 1.0) -> str | None:
    return kernel.refuses(x, dim, dtype=accumulation_dtype(x.dtype))


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x = torch.linspace(-2, 2, 6).reshape(2, 3)
    for gamma in (0.1, 1e-9, float("nan"), float("-inf"), float("inf")):
        yield (x,), {"gamma": gamma}, ValueError, "gamma"
    for zeta in (0.99, 0.0, -1.0, float("nan"), float("inf")):
        yield (x,), {"zeta": zeta}, ValueError, "zeta"
    yield (x,), {"eta": 0.5}, ValueError, "eta"
    yield (x,), {"zeta": 1.1, "eta": 1.1}, ValueError, "eta"
    for other in (True, torch.tensor(-0.1), None):
        yield (x,), {"gamma": other}, TypeError, "gamma"
    for dtype in (torch.int64, torch.bool, "float32", float):
        yield (x,), {"dtype": dtype}, ValueError, "dtype"


@method(
    site="normalizers",
    family="row_map",
    paper="quantizable-transformers",
    source="eq. 4: clip((zeta - gamma) softmax(x) + gamma, 0, 1)",
    reference=_reference,
    kernels=(Kernel("native", _native, _native_refuses),),
    variants={
        "default": {},
        "softmax": {"gamma": 0.0},
        "both_ends": {"gamma": -0.1, "zeta": 1.1},
        "ones_only": {"gamma": 0.0, "zeta": 1.03},
    },
    laws=(
        "nonnegative",
        "shift_invariant",
        "permutation_equivariant",
        "order_preserving",
        "masked_equals_removed",
        "gradient_sums_to_zero",
    ),
    output_range=(0.0, 1.0),
    error_scale="tensor",
    masked_rows="zeros",
    bad_inputs=_bad_inputs,
    deviations=("gamma defaults to -0.03, near the paper's BERT setting; the authors' bare function has -0.1 and 1.1",),
)
def clipped_softmax(
    x: Tensor,
    dim: int = -1,
    gamma: float = -0.03,
    zeta: float = 1.0,
    *,
    eta: float | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Clipped softmax along ``dim``: ``clip((zeta - gamma) · softmax(x) + gamma, 0, 1)``.

    Entries whose softmax is at most ``-gamma / (zeta - gamma)`` become exactly 0, with scores that stay finite; with
    ``zeta > 1`` those of at least ``(1 - gamma) / (zeta - gamma)`` become exactly 1. A clipped entry passes no
    gradient of its own; every score still gets one through the normaliser. Rows no longer sum to 1, and are not
    normalised again.

    Args:
        x: scores of any shape, float64, float32, bfloat16 or float16 (half precisions are computed in float32).
        dim: the dimension that softmax normalises.
        gamma: lower end of the stretch, finite and at most 0. The paper sets ``-alpha / T`` with the training length T
            and alpha from 2 to 4 (see :class:`ClippedSoftmax`); 0 clips nothing.
        zeta: upper end of the stretch, finite and at least 1. 1 in all of the paper's final models.
        eta: another name of ``zeta``, which the authors' code uses.
        dtype: convert ``x`` first.

    Returns:
        Weights like ``x`` in [0, 1]; with ``zeta = 1`` a row sums to at most 1. ``-inf`` gives exactly 0, a row of
        ``-inf`` zeros and zero gradients; NaN or ``+inf`` makes the whole row NaN.

    Raises:
        ArgumentTypeError: a wrong type.
        ArgumentValueError: ``gamma``, ``zeta``, ``dim`` or ``dtype`` is not allowed; the message names it.

    Example:
        >>> import torch
        >>> clipped_softmax(torch.tensor([4.0, 3.0, 0.0]), gamma=-0.1)
        tensor([0.6935, 0.1919, 0.0000])

    Paper: Quantizable Transformers, arXiv 2306.12929, eq. 4.
    """
    check_float_tensor("x", x)
    check_dim(dim, x.ndim)
    if eta is not None and zeta != 1.0:
        raise ArgumentValueError(f"eta is another name of zeta: give one of them, got zeta={zeta!r} and eta={eta!r}")
    gamma, upper = check_stretch(gamma, zeta if eta is None else eta, "zeta" if eta is None else "eta")
    if dtype is not None:
        if dtype not in _DTYPES:
            bad_value("dtype", dtype, "None, float64, float32, bfloat16 or float16")
        x = x.to(dtype)
    result: Tensor = dispatch.call(record_of(clipped_softmax), x, dim, gamma, upper)
    return result


class ClippedSoftmax(nn.Module):
    """Module form of :func:`clipped_softmax`, with the paper's rule for the length.

    Args:
        dim: the dimension that softmax normalises.
        gamma: lower end of the stretch; or give ``alpha``.
        alpha: sets ``gamma = -alpha / max_seq_len``. A uniform row of that length has weights ``1 / max_seq_len``;
            weights below ``alpha / (max_seq_len + alpha)`` become 0. The paper recommends 2 to 4.
        max_seq_len: the length T that the model is trained at. It stays fixed when rows are longer or shorter.
        zeta: upper end of the stretch.

    Raises:
        ArgumentTypeError: a wrong type.
        ArgumentValueError: not exactly one of ``gamma`` and ``alpha``, or a value that is not allowed.

    Example:
        >>> import torch
        >>> ClippedSoftmax(alpha=4.0, max_seq_len=128)(torch.zeros(2, 128)).sum()
        tensor(0.)

    Paper: Quantizable Transformers, arXiv 2306.12929, eq. 4 and section 5.2.
    """

    def __init__(
        self,
        dim: int = -1,
        *,
        gamma: float | None = None,
        alpha: float | None = None,
        max_seq_len: int | None = None,
        zeta: float = 1.0,
    ) -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int):
            bad_type("dim", dim, "an int")
        self.dim = dim
        self.gamma, self.zeta = check_stretch(resolve_gamma(gamma, alpha, max_seq_len), zeta)

    def forward(self, x: Tensor) -> Tensor:
        """Clipped softmax of ``x`` (any shape) along ``dim``."""
        return clipped_softmax(x, self.dim, self.gamma, self.zeta)

    def extra_repr(self) -> str:
        """Arguments, as shown by ``print(model)``."""
        return f"dim={self.dim}, gamma={self.gamma:g}, zeta={self.zeta:g}"
