"""Linear attention: the similarity of query and key is a product of feature maps, normalised by its row sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_number
from softgate._math import masks
from softgate.attention.separable.backends import run
from softgate.attention.separable.features import FeatureMap, feature_function
from softgate.attention.separable.forms import quadratic, state_refuses, with_state
from softgate.registry import Kernel, method

__all__ = ["linear_attention"]


def _features(query: Tensor, key: Tensor, scale: float | None, feature_map: FeatureMap) -> tuple[Tensor, Tensor]:
    apply, dtype = feature_function(feature_map), masks.accumulation_dtype(query.dtype)
    q, k = query.to(dtype), key.to(dtype)
    return apply(q if scale is None else q * scale), apply(k)


def linear_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    feature_map: FeatureMap = "elu",
    eps: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """The formula as a T x S matrix; see :func:`softgate.attention.linear_attention` for the arguments."""
    query, key, value = masks.cast_for_autocast(query, key, value)
    with masks.without_autocast(query):
        q_BHTN, k_BGSN = _features(query, key, scale, feature_map)
        mask = masks.resolve_mask(attn_mask, query, key, is_causal)
        y_BHTD = quadratic(q_BHTN, k_BGSN, value.to(q_BHTN.dtype), mask, dropout_p=dropout_p, normaliser=eps)
        return y_BHTD.to(query.dtype)


def _run_state(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    feature_map: FeatureMap = "elu",
    eps: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    query, key, value = masks.cast_for_autocast(query, key, value)
    with masks.without_autocast(query):
        q_BHTN, k_BGSN = _features(query, key, scale, feature_map)
        y_BHTD = with_state(q_BHTN, k_BGSN, value.to(q_BHTN.dtype), attn_mask, is_causal, normaliser=eps)
        return y_BHTD.to(query.dtype)


def _state_refuses(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *rest: Any,
    backend: str = "auto",
    **options: Any,
) -> str | None:
    return state_refuses(query, key, attn_mask, dropout_p, is_causal, backend == "chunked")


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Any:
    """The form with a state over more than one chunk, with the masks it knows."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    yield (draw(1, 2, 5, 3), draw(1, 2, 5, 3), draw(1, 2, 5, 2)), {"feature_map": "exp", "eps": 1e-6}
    forced = {"backend": "chunked"}
    args = (draw(1, 2, 70, 3), draw(1, 1, 75, 3), draw(1, 1, 75, 2))
    yield args, {"is_causal": True, "enable_gqa": True, **forced}
    keep = torch.rand(2, 1, 1, 70, generator=generator) > 0.3
    keep[0, ..., :2] = False
    args = (draw(2, 1, 70, 3), draw(2, 1, 70, 3), draw(2, 1, 70, 2))
    yield args, {"attn_mask": keep, "is_causal": True, **forced}
    yield (draw(2, 1, 20, 3), draw(2, 1, 30, 3), draw(2, 1, 30, 2)), {"attn_mask": draw(1, 30), **forced}
    yield (draw(1, 1, 300, 2), draw(1, 1, 300, 2), draw(1, 1, 300, 2)), {"is_causal": True}


@method(
    site="attention",
    family="attention",
    paper="dynamical-systems-framework",
    source="section 3, linear attention as a dynamical system with normaliser η = row sum",
    reference=linear_attention_reference,
    kernels=(Kernel("chunked", _run_state, _state_refuses),),
    # scale is fixed, so that the suite does not expect the default 1/√D of scores that go through a softmax
    variants={"default": {"scale": 1.0}},
    laws=("decode_equals_prefill", "value_linear"),
    masked_rows="zeros",
    samples=_samples,
    deviations=("scale=None is 1: the authors' code has no factor, and a row sum cancels one after the feature map",),
)
def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    feature_map: FeatureMap = "elu",
    eps: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Linear attention, ``y_i = Σ_j φ(q_i)·φ(k_j) v_j / (Σ_j φ(q_i)·φ(k_j) + eps)``.

    Called like :func:`torch.nn.functional.scaled_dot_product_attention`. The sums over j can be kept in a state of
    N x (D + 1) numbers per key/value head, so long sequences cost time and memory linear in their length.

    Args:
        query: (…, H, T, N).
        key: (…, G, S, N); G = H, or H a multiple of G with ``enable_gqa``.
        value: (…, G, S, D).
        attn_mask: broadcastable to (…, H, T, S); bool (True = attend) or float b, which multiplies a similarity by
            e^b as it does in softmax. Masks over keys alone (…, 1, 1, S) keep the cost linear.
        dropout_p: probability of dropping an attention weight, in [0, 1).
        is_causal: query i sees key j where j <= i + S - T (aligned at the bottom right). Combines with ``attn_mask``.
        scale: factor of the queries before the feature map; None is 1, not 1/√N.
        enable_gqa: query head h uses the state of key/value head h // (H/G).
        feature_map: ``"elu"`` (elu(x) + 1, positive), ``"relu"``, ``"exp"``, ``"identity"`` or a callable (…, N) ->
            (…, N'). Where features can be negative a row sum can vanish, and the result be arbitrarily large.
        eps: added to the row sum, not negative.
        backend: ``"auto"``, ``"reference"`` (the T x S matrix) or ``"chunked"`` (the state).

    Returns:
        (…, H, T, D) in the dtype of ``query`` (autocast's dtype inside autocast); 16-bit inputs are summed in float32.
        A query without any allowed key gives 0 and zero gradients. NaN in a query, key or value stays in its head.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes, devices or numbers that do not fit.
        StateError: ``backend`` names a form that cannot run this call.

    Example:
        >>> import torch
        >>> q, k, v = torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), torch.tensor([[[[1.0], [2.0], [6.0]]]])
        >>> linear_attention(q, k, v, is_causal=True).flatten()
        tensor([1.0000, 1.5000, 3.0000])

    Paper: Understanding the Differences in Foundation Models, arXiv 2405.15731, section 3.
    """
    masks.check_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    feature_function(feature_map)
    check_number("eps", eps, low=0.0, high_open=True)
    arguments = (query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    return run(linear_attention, arguments, {"feature_map": feature_map, "eps": eps}, backend)
