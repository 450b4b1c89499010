"""Softmax-free attention (SOFT, SOFT++): a Gaussian kernel of the queries, factorised over landmarks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_same_device
from softgate._math import masks
from softgate.attention.relu_linear import check_key_padding
from softgate.attention.soft import tiled
from softgate.attention.soft.gaussian import gaussian_kernel
from softgate.attention.soft.newton import Alpha, check_newton, newton_residual, newton_schulz_pinv
from softgate.attention.soft.reference import INVERSES, Inverse, softmax_free_attention_reference
from softgate.dispatch import call
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, bad_type, check_choice
from softgate.registry import Kernel, method, record_of

__all__ = ["gaussian_kernel", "newton_residual", "newton_schulz_pinv", "softmax_free_attention"]

_BACKENDS = ("auto", "reference", "tiled")


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    def inputs(batch: int, tokens: int, marks: int, dim: int = 3, width: int = 2) -> tuple[Tensor, Tensor, Tensor]:
        """Landmarks at a distance of 2 from each other, where Newton's iteration has converged after 20 steps."""
        corners = 2.0 * torch.eye(marks, dim, dtype=torch.float64) + 0.1 * torch.randn(
            (batch, 2, marks, dim), dtype=torch.float64, generator=generator
        )
        return draw(batch, 2, tokens, dim), draw(batch, 2, tokens, width), corners.to(dtype)

    yield inputs(1, 4, 2), {}
    yield inputs(2, 7, 3), {"normalized": False}
    yield inputs(2, 6, 3), {"inverse": "cholesky"}
    yield inputs(2, 6, 3), {"inverse": "pinv", "ridge": 0.1}
    yield inputs(2, 6, 3), {"alpha": "global", "ridge": 0.0, "implicit_grad": False}
    keep = torch.ones(2, 9, dtype=torch.bool)
    keep[0, 5:] = False
    keep[1] = False
    yield inputs(2, 9, 4, 5, 3), {"key_padding_mask": keep}
    yield inputs(0, 4, 2), {}
    query, value, landmarks = inputs(1, 131, 3)
    yield (query + 50.0, value, landmarks + 50.0), {"normalized": False}  # far from the origin, many tiles' worth


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    query, landmarks = torch.ones(2, 3, 6, 4), torch.ones(2, 3, 2, 4)
    good = (query, query, landmarks)
    yield good, {"is_causal": True}, ValueError, "is_causal"
    yield good, {"attn_mask": torch.ones(6, 6, dtype=torch.bool)}, ValueError, "attn_mask"
    yield good, {"key": query.clone()}, ValueError, "key"
    yield (query, torch.ones(2, 3, 5, 4), landmarks), {}, ValueError, "value"
    yield (query, query, torch.ones(2, 2, 2, 4)), {}, ValueError, "landmarks"
    yield (query, query, torch.ones(2, 3, 2, 5)), {}, ValueError, "landmarks"
    yield (query, query, torch.ones(2, 3, 0, 4)), {}, ValueError, "landmarks"
    yield (query, query, landmarks.double()), {}, TypeError, "landmarks"
    yield (torch.ones(6, 4), torch.ones(6, 4), torch.ones(2, 4)), {}, ValueError, "query"
    yield good, {"newton_iters": 0}, ValueError, "newton_iters"
    yield good, {"ridge": -1.0}, ValueError, "ridge"
    yield good, {"key_padding_mask": torch.ones(2, 6)}, TypeError, "key_padding_mask"
    yield good, {"key_padding_mask": torch.ones(6, 6, dtype=torch.bool)}, ValueError, "key_padding_mask"


@method(
    site="attention",
    family="custom",
    paper="soft-linear-transformer",
    source="SOFT, arXiv 2110.11945, eq. 3 to 8; SOFT++, arXiv 2207.03341, symmetric normalisation",
    reference=softmax_free_attention_reference,
    kernels=(Kernel("tiled", tiled.run, tiled.refuses),),
    variants={"soft++": {}, "soft": {"normalized": False}, "soft++ tiled": {"backend": "tiled"}},
    masked_rows="zeros",
    samples=_samples,
    bad_inputs=_bad_inputs,
    deviations=(
        "the ridge of SOFT's code (0.01) is the default of SOFT++ too, whose code has none: ridge=0.0 gives that",
        "every head of every sample has its own step size in Newton's iteration; alpha='global' gives that of SOFT++",
        "gradients of the inverse are implicit in both; implicit_grad=False differentiates the steps, as SOFT++'s code",
        "padded tokens are an extension: the paper has none",
    ),
)
def softmax_free_attention(
    query: Tensor,
    value: Tensor,
    landmarks: Tensor,
    *,
    normalized: bool = True,
    inverse: Inverse = "newton",
    newton_iters: int = 20,
    ridge: float = 0.01,
    alpha: Alpha = "per_matrix",
    implicit_grad: bool = True,
    key_padding_mask: Tensor | None = None,
    key: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Attention by a Gaussian kernel in linear time: ``P C (Pᵀ V)``, where P is the kernel of queries and landmarks.

    ``P = exp(-|q_i - b_j|²/2)`` (N x M), ``A = exp(-|b_i - b_j|²/2)`` (M x M). SOFT: ``C = (A + ridge I)⁻¹``, the
    Nyström factorisation of the N x N kernel of the queries. SOFT++ (``normalized``): ``C`` between two ``D^(-1/2)``,
    ``D = diag(A 1)``, which tames the spectral norm. Queries and keys are the same; rows do not sum to 1.

    Args:
        query: (…, H, N, D), already divided by D^(1/4), so that the exponent is ``-|q - k|² / (2 √D)``.
        value: (…, H, N, Dv).
        landmarks: (…, H, M, D), M of at least 1 and well below N: points that stand for the queries, in the paper a
            strided convolution of them (:class:`softgate.attention.SoftmaxFreeAttention`).
        normalized: SOFT++ if True, SOFT if False.
        inverse: ``"newton"`` as in the papers, ``"cholesky"`` (exact, needs A + ridge I positive definite), or
            ``"pinv"`` (gradients explode near rank deficiency).
        newton_iters: steps of Newton's iteration, see :func:`softgate.attention.newton_schulz_pinv`.
        ridge: added to the diagonal of A. With 0, landmarks that (nearly) coincide have no inverse.
        alpha: step size of Newton's iteration, ``"per_matrix"`` or ``"global"``.
        implicit_grad: gradient of Newton's inverse in closed form; False differentiates the steps.
        key_padding_mask: bool (…, N) without the head dimension, True = real token. Padded tokens get 0 and count
            nowhere; leave them out of the landmarks, too.
        key: None or ``query`` itself; anything else raises.
        attn_mask: None; the N x N weights are never formed, so a mask of pairs raises.
        is_causal: False; landmarks pool all positions, so a causal form is not defined and True raises.
        backend: ``"auto"``, ``"reference"`` (plain torch, keeps P for backward) or ``"tiled"`` (memory linear in N).

    Returns:
        (…, H, N, Dv) in the dtype of ``query`` (autocast's inside autocast). Kernel and inverse of 16-bit inputs are
        taken in float32. Queries far (about 13) from every landmark give 0. NaN in a query or value reaches its head,
        in a landmark likewise (with ``"newton"``; the others raise).

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes, devices or numbers that do not fit; ``key``, ``attn_mask`` or ``is_causal``.
        StateError: ``backend`` names a kernel that cannot run this call, or a matrix cannot be inverted as asked.

    Warns:
        UserWarning: more landmarks than tokens.

    Example:
        >>> import torch
        >>> q = torch.tensor([0.0, 0.1, 3.0, 3.1]).reshape(1, 1, 4, 1)  # two groups of tokens, a landmark in each
        >>> y = softmax_free_attention(q, q, torch.tensor([0.05, 3.05]).reshape(1, 1, 2, 1), normalized=False)
        >>> y.flatten()  # the sum of the group's values, nearly
        tensor([0.1576, 0.1778, 6.0260, 6.0257])

    Paper: SOFT, arXiv 2110.11945, eq. 3 to 8; SOFT++, arXiv 2207.03341.
    """
    _check_tensors(query, value, landmarks)
    _check_not_offered(query, key, attn_mask, is_causal)
    check_newton(newton_iters, ridge, alpha, implicit_grad, iters_name="newton_iters")
    check_choice("inverse", inverse, INVERSES)
    check_choice("backend", backend, _BACKENDS)
    if not isinstance(normalized, bool):
        bad_type("normalized", normalized, "a bool")
    if key_padding_mask is not None:
        check_key_padding(key_padding_mask, query)
    options: dict[str, Any] = {
        "normalized": normalized,
        "inverse": inverse,
        "newton_iters": newton_iters,
        "ridge": ridge,
        "alpha": alpha,
        "implicit_grad": implicit_grad,
        "key_padding_mask": key_padding_mask,
        "backend": backend,
    }
    if torch.compiler.is_compiling() or backend == "reference":
        return softmax_free_attention_reference(query, value, landmarks, **options)
    forced = backend == "tiled" and not query.is_meta  # only shapes are asked for then, and the reference knows them
    reason = tiled.refuses(query, value, landmarks, **options) if forced else None
    if reason is not None:
        raise StateError(f"backend={backend!r} cannot run this call: {reason}")
    try:
        return call(record_of(softmax_free_attention), query, value, landmarks, **options)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise StateError(
            f"inverse={inverse!r} failed: the matrix of the landmarks plus ridge={ridge} is not positive definite, or "
            f"they hold NaN; a larger ridge, or inverse='newton', will do ({error})"
        ) from error


def _check_tensors(query: Any, value: Any, landmarks: Any) -> None:
    named = {"query": query, "value": value, "landmarks": landmarks}
    for name, tensor in named.items():
        check_float_tensor(name, tensor)
        if tensor.ndim < 3:
            raise ArgumentValueError(
                f"{name} must have shape (..., heads, length, features), got {tuple(tensor.shape)}"
            )
    check_same_device(**named)
    shapes = f"query {tuple(query.shape)}, value {tuple(value.shape)}, landmarks {tuple(landmarks.shape)}"
    if query.shape[:-1] != value.shape[:-1]:
        raise ArgumentValueError(f"query and value must agree in all dimensions but the last, got {shapes}")
    if query.shape[:-2] != landmarks.shape[:-2] or query.shape[-1] != landmarks.shape[-1]:
        raise ArgumentValueError(f"query and landmarks must agree in batch, heads and features, got {shapes}")
    if landmarks.shape[-2] == 0 or query.shape[-1] == 0:
        raise ArgumentValueError(f"landmarks must hold at least one point of at least one feature, got {shapes}")
    if not query.dtype == value.dtype == landmarks.dtype and masks.autocast_dtype(query) is None:
        raise ArgumentTypeError(
            "query, value and landmarks must have one dtype outside autocast, got "
            f"{query.dtype}, {value.dtype} and {landmarks.dtype}"
        )
    if not torch.compiler.is_compiling() and landmarks.shape[-2] > query.shape[-2] > 0:
        warnings.warn(
            f"{landmarks.shape[-2]} landmarks for {query.shape[-2]} tokens: the factorisation saves nothing",
            stacklevel=3,
        )


def _check_not_offered(query: Tensor, key: Any, attn_mask: Any, is_causal: Any) -> None:
    """What every other attention function takes, with the reason why this one cannot."""
    if not isinstance(is_causal, bool):
        bad_type("is_causal", is_causal, "a bool")
    if is_causal:
        raise ArgumentValueError(
            "is_causal must be False: landmarks pool all positions, so softmax-free attention has no causal form and "
            "no decoding step by step; take a causal one, such as softgate.attention.gated_attention"
        )
    if key is not None and key is not query:
        raise ArgumentValueError(
            "key must be None or query itself: the kernel is one of the queries with themselves, there is no "
            "cross-attention"
        )
    if attn_mask is not None:
        raise ArgumentValueError(
            "attn_mask must be None: the weights of pairs are never formed; key_padding_mask leaves tokens out"
        )
