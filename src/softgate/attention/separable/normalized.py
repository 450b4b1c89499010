"""Normalised attention: linear attention whose normaliser is a learned function of the query's token alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_same_device
from softgate._math import masks
from softgate.attention.separable.backends import run
from softgate.attention.separable.features import READ_OUTS, FeatureMap, feature_function
from softgate.attention.separable.forms import quadratic, state_refuses, with_state
from softgate.errors import ArgumentTypeError, ArgumentValueError, check_choice
from softgate.registry import Kernel, method

__all__ = ["normalized_attention"]


def _features(query: Tensor, key: Tensor, scale: float | None, feature_map: FeatureMap) -> tuple[Tensor, Tensor]:
    apply, dtype = feature_function(feature_map), masks.accumulation_dtype(query.dtype)
    q, k = apply(query.to(dtype)), apply(key.to(dtype))
    return (q if scale is None else q * scale), k


def normalized_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    eta: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    norm: str = "exp",
    feature_map: FeatureMap = "identity",
    backend: str = "auto",
) -> Tensor:
    """The formula as a T x S matrix; see :func:`softgate.attention.normalized_attention` for the arguments."""
    query, key, value = masks.cast_for_autocast(query, key, value)
    with masks.without_autocast(query):
        q_BHTN, k_BGSN = _features(query, key, scale, feature_map)
        mask = masks.resolve_mask(attn_mask, query, key, is_causal)
        y_BHTD = quadratic(q_BHTN, k_BGSN, value.to(q_BHTN.dtype), mask, dropout_p=dropout_p, normaliser=None)
        return (y_BHTD * READ_OUTS[norm](eta.to(y_BHTD.dtype))).to(query.dtype)


def _run_state(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    eta: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    norm: str = "exp",
    feature_map: FeatureMap = "identity",
    backend: str = "auto",
) -> Tensor:
    query, key, value = masks.cast_for_autocast(query, key, value)
    with masks.without_autocast(query):
        q_BHTN, k_BGSN = _features(query, key, scale, feature_map)
        y_BHTD = with_state(q_BHTN, k_BGSN, value.to(q_BHTN.dtype), attn_mask, is_causal, normaliser=None)
        # 1/η stands outside the state: ratios of neighbouring η, which the recurrence could use, may overflow.
        return (y_BHTD * READ_OUTS[norm](eta.to(y_BHTD.dtype))).to(query.dtype)


def _state_refuses(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    eta: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *rest: Any,
    backend: str = "auto",
    **options: Any,
) -> str | None:
    return state_refuses(query, key, attn_mask, dropout_p, is_causal, backend == "chunked")


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Any:
    """Normaliser shapes, and the form with a state over more than one chunk."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    yield (draw(1, 2, 4, 3), draw(1, 2, 4, 3), draw(1, 2, 4, 2), draw(1, 2, 4, 1)), {"is_causal": True}
    yield (draw(1, 2, 4, 3), draw(1, 2, 4, 3), draw(1, 2, 4, 2), draw(1, 1, 4, 1)), {"norm": "softplus"}
    args = (draw(2, 2, 70, 3), draw(2, 1, 70, 3), draw(2, 1, 70, 2), draw(2, 2, 70, 1))
    yield args, {"is_causal": True, "enable_gqa": True, "backend": "chunked"}
    yield (draw(1, 1, 300, 2), draw(1, 1, 300, 2), draw(1, 1, 300, 2), draw(1, 1, 300, 1)), {"is_causal": True}


@method(
    site="attention",
    family="attention",
    paper="dynamical-systems-framework",
    source="section 4, normalised attention: η(u_i) in place of the row sum",
    reference=normalized_attention_reference,
    kernels=(Kernel("chunked", _run_state, _state_refuses),),
    # scale is fixed, so that the suite does not expect the default 1/√D of scores that go through a softmax
    variants={name: {"norm": name, "scale": 1.0} for name in READ_OUTS},
    laws=("decode_equals_prefill", "value_linear"),
    masked_rows="zeros",
    samples=_samples,
    deviations=("logits of η are clamped where e^n would leave [e^-30, e^30]; the authors' code overflows there",),
)
def normalized_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    eta: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    norm: str = "exp",
    feature_map: FeatureMap = "identity",
    backend: str = "auto",
) -> Tensor:
    """Linear attention without row sums: ``y_i = Σ_j φ(q_i)·φ(k_j) v_j / η_i``, η_i a function of token i alone.

    As for state space models, what a token adds is not divided by what others added, so the state can be read exactly.

    Args:
        query: (…, H, T, N).
        key: (…, G, S, N); G = H, or H a multiple of G with ``enable_gqa``.
        value: (…, G, S, D).
        eta: (…, H or 1, T, 1) logits n_i of the normaliser, a linear map of the query's hidden state; of the query's
            dtype or float32.
        attn_mask: broadcastable to (…, H, T, S); bool (True = attend) or float b, which multiplies a similarity by
            e^b. Masks over keys alone (…, 1, 1, S) keep the cost linear.
        dropout_p: probability of dropping an attention weight, in [0, 1).
        is_causal: query i sees key j where j <= i + S - T (aligned at the bottom right). Combines with ``attn_mask``.
        scale: factor of the similarities; None is 1, not 1/√N.
        enable_gqa: query head h uses the state of key/value head h // (H/G).
        norm: η(n): ``"exp"``, ``"softplus"`` or ``"sigmoid"``. Logits are clamped to [-30, 30] (exp) or from below.
        feature_map: ``"identity"`` (as the paper), ``"elu"``, ``"relu"``, ``"exp"`` or a callable.
        backend: ``"auto"``, ``"reference"`` (the T x S matrix) or ``"chunked"`` (the state).

    Returns:
        (…, H, T, D) in the dtype of ``query``; 16-bit inputs are summed, and η is applied, in float32. A query without
        any allowed key gives 0 and zero gradients. Weights of a row sum to no particular number.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes, devices or numbers that do not fit.
        StateError: ``backend`` names a form that cannot run this call.

    Example:
        >>> import torch
        >>> q = k = v = torch.ones(1, 1, 3, 1)
        >>> normalized_attention(q, k, v, torch.zeros(1, 1, 3, 1), is_causal=True).flatten()
        tensor([1., 2., 3.])

    Paper: Understanding the Differences in Foundation Models, arXiv 2405.15731, section 4.
    """
    masks.check_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    feature_function(feature_map)
    check_choice("norm", norm, tuple(READ_OUTS))
    _check_eta(eta, query)
    arguments = (query, key, value, eta, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    return run(normalized_attention, arguments, {"norm": norm, "feature_map": feature_map}, backend)


def _check_eta(eta: Any, query: Tensor) -> None:
    check_float_tensor("eta", eta)
    check_same_device(query=query, eta=eta)
    if eta.dtype not in (query.dtype, masks.accumulation_dtype(query.dtype)) and masks.autocast_dtype(query) is None:
        raise ArgumentTypeError(f"eta must have the dtype of query ({query.dtype}) or float32, got {eta.dtype}")
    shapes = [(*query.shape[:-3], heads, query.shape[-2], 1) for heads in (query.shape[-3], 1)]
    if tuple(eta.shape) not in shapes:
        raise ArgumentValueError(f"eta must have shape {shapes[0]} (or 1 head), got {tuple(eta.shape)}")
