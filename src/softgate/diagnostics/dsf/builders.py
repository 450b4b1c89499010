"""Token mixers as systems: attention with separable similarities, state space models, gated recurrent networks.

Attention normalised by η has decays η_{i-1}/η_i in the paper's form. Those ratios overflow, so here the state is left
unnormalised (decay 1) and 1/η_i goes to the read-out; the matrix is the same, as the states differ by a factor only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number
from softgate._math.masks import expand_kv_heads
from softgate.attention.scans.checks import check_stable
from softgate.attention.scans.gates import qlstm_log_decay, rglru_input_factor, rglru_log_decay
from softgate.attention.separable.features import READ_OUTS, FeatureMap, feature_function
from softgate.attention.separable.forms import nonzero
from softgate.diagnostics.dsf.system import System
from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice

__all__ = [
    "from_linear_attention",
    "from_normalized_attention",
    "from_qlstm",
    "from_rglru",
    "from_s6",
    "from_softmax",
    "from_ssd",
    "taylor_weights",
]

#: State features beyond this would need gigabytes for a few tokens.
_LARGEST_STATE = 2**24


def from_softmax(
    query: Tensor, key: Tensor, value: Tensor | None = None, *, order: int, scale: float | None = None
) -> System:
    """Causal softmax attention with e^s replaced by its Taylor polynomial of ``order``.

    Softmax itself needs an infinite state; the polynomial has all monomials of the key up to ``order`` in its state,
    n = Σ_{p <= order} d^p. Use even orders: odd ones can give negative weights and a vanishing row sum.

    Args:
        query: (…, H, T, d).
        key: (…, G, T, d), H a multiple of G.
        value: (…, G, T, dv), the stream u; None if the matrix alone is wanted.
        order: not negative.
        scale: factor of the scores, 1/√d if None.

    Raises:
        ArgumentValueError: shapes that do not fit, or a state that would be too large.

    Paper: arXiv 2405.15731, section 3 (softmax attention as an infinite-dimensional system).
    """
    q, k, u = _heads(query, key, value)
    features = _check_order(order, q.shape[-1])
    factor = 1.0 / math.sqrt(q.shape[-1]) if scale is None else check_number("scale", scale)
    if features > _LARGEST_STATE or (order > 3 and q.shape[-1] > 32):
        raise ArgumentValueError(f"order={order} on {q.shape[-1]} features needs a state of {features:,} per channel")
    return _separable(_monomials(q * factor, order), _monomials(k, order), u, None)


def _monomials(x: Tensor, order: int) -> Tensor:
    """All monomials x^{⊗p}/√p!, p = 0, …, order, side by side."""
    power, parts = torch.ones_like(x[..., :1]), []
    for p in range(order + 1):
        parts.append(power / math.sqrt(math.factorial(p)))
        power = (power[..., :, None] * x[..., None, :]).flatten(-2)
    return torch.cat(parts, -1)


def taylor_weights(query: Tensor, key: Tensor, *, order: int, scale: float | None = None) -> Tensor:
    """Causal attention weights (…, H, T, T) of :func:`from_softmax`, formed from the scores without the large state.

    Args:
        query: (…, H, T, d).
        key: (…, G, T, d).
        order: not negative.
        scale: factor of the scores, 1/√d if None.

    Example:
        >>> import torch
        >>> taylor_weights(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), order=2)
        tensor([[[1.0000, 0.0000],
                 [0.5000, 0.5000]]])
    """
    q, k, _ = _heads(query, key, None)
    _check_order(order, q.shape[-1])
    scores = q @ k.transpose(-1, -2) * (1.0 / math.sqrt(q.shape[-1]) if scale is None else check_number("scale", scale))
    weights = torch.ones_like(scores)
    for p in range(order, 0, -1):  # Horner's scheme of Σ s^p / p!
        weights = 1.0 + scores / p * weights
    weights = weights.tril()
    return weights / nonzero(weights.sum(-1, keepdim=True))


def _check_order(order: int, width: int) -> int:
    """The number of monomials up to ``order``."""
    if isinstance(order, bool) or not isinstance(order, int):
        bad_type("order", order, "an int, not negative")
    if order < 0:
        bad_value("order", order, "an int, not negative")
    return sum(width**p for p in range(order + 1))


def from_linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    *,
    feature_map: FeatureMap = "elu",
    eps: float = 0.0,
) -> System:
    """Causal linear attention, see :func:`softgate.attention.linear_attention`; η is the row sum plus ``eps``.

    Args:
        query: (…, H, T, n).
        key: (…, G, T, n), H a multiple of G.
        value: (…, G, T, d), the stream u; None if the matrix alone is wanted.
        feature_map: see there.
        eps: added to the row sum.
    """
    q, k, u = _heads(query, key, value)
    apply = feature_function(feature_map)
    return _separable(apply(q), apply(k), u, None, check_number("eps", eps, low=0.0))


def from_normalized_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    eta: Tensor,
    *,
    norm: str = "exp",
    feature_map: FeatureMap = "identity",
) -> System:
    """Causal normalised attention, see :func:`softgate.attention.normalized_attention`.

    Args:
        query: (…, H, T, n).
        key: (…, G, T, n), H a multiple of G.
        value: (…, G, T, d), the stream u; None if the matrix alone is wanted.
        eta: (…, H or 1, T, 1) logits of the normaliser.
        norm: ``"exp"``, ``"softplus"``, ``"sigmoid"``.
        feature_map: of queries and keys.
    """
    q, k, u = _heads(query, key, value)
    check_float_tensor("eta", eta)
    check_choice("norm", norm, tuple(READ_OUTS))
    if eta.shape[-2:] != (q.shape[-2], 1):
        raise ArgumentValueError(f"eta must have shape (..., heads or 1, {q.shape[-2]}, 1), got {tuple(eta.shape)}")
    apply = feature_function(feature_map)
    return _separable(apply(q), apply(k), u, READ_OUTS[norm](eta))


def _separable(q: Tensor, k: Tensor, u: Tensor | None, factor: Tensor | None, eps: float = 0.0) -> System:
    """The system with similarity q·k and read-out ``factor``; None divides by the row sum."""
    if factor is None:
        factor = 1.0 / nonzero((q * k.cumsum(-2)).sum(-1, keepdim=True) + eps)
    never = torch.zeros_like(k[..., None, :1])
    return System.from_log_decay(never, k[..., None, :], (q * factor)[..., None, :], u=u)


def _heads(query: Tensor, key: Tensor, value: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Query, key and value with equally many heads."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x is not None or name != "value":
            check_float_tensor(name, x)
    if query.ndim < 3 or key.ndim != query.ndim or key.shape[-2:] != query.shape[-2:]:
        raise ArgumentValueError(
            f"query and key must have shape (..., heads, length, features) of equal length and features, "
            f"got {tuple(query.shape)} and {tuple(key.shape)}"
        )
    heads = query.shape[-3]
    if key.shape[-3] == 0 or heads % key.shape[-3]:
        raise ArgumentValueError(f"query heads must be a multiple of key heads, got {heads} and {key.shape[-3]}")
    if value is not None and value.shape[:-1] != key.shape[:-1]:
        raise ArgumentValueError(f"value must agree with key in heads and length, got {tuple(value.shape)}")
    return query, expand_kv_heads(key, heads), None if value is None else expand_kv_heads(value, heads)


def from_s6(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    allow_unstable: bool = False,
) -> System:
    """S6; arguments as for :func:`softgate.attention.selective_scan`. Λ = e^{-Δ A}, a decay per channel and state."""
    for name, x in (("u", u), ("delta", delta), ("A", A), ("B", B), ("C", C)):
        check_float_tensor(name, x)
    check_stable(A, allow_unstable)
    write = delta[..., None] * B[..., None, :]
    direct = None if D is None else D[None, :]
    return System.from_log_decay(-delta[..., None] * A, write, C[..., None, :], direct, u=u)


def from_ssd(
    value: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    allow_unstable: bool = False,
) -> System:
    """SSD; arguments as for :func:`softgate.attention.ssd_scan`. Λ = e^{-Δ A}, one decay per head and token."""
    for name, x in (("value", value), ("delta", delta), ("A", A), ("B", B), ("C", C)):
        check_float_tensor(name, x)
    check_stable(A, allow_unstable)
    heads = value.shape[-3]
    b, c = expand_kv_heads(B, heads), expand_kv_heads(C, heads)
    log_decay = -(delta * A[:, None])[..., None, None]
    direct = None if D is None else D[:, None, None]
    return System.from_log_decay(log_decay, (b * delta[..., None])[..., None, :], c[..., None, :], direct, u=value)


def from_qlstm(
    x: Tensor, forget: Tensor, input_gate: Tensor, output_gate: Tensor, alpha: Tensor | None = None
) -> System:
    """qLSTM; arguments as for :func:`softgate.attention.qlstm_scan`. n = 1, all factors per channel."""
    for name, tensor in (("x", x), ("forget", forget), ("input_gate", input_gate), ("output_gate", output_gate)):
        check_float_tensor(name, tensor)
    write, read = torch.sigmoid(input_gate), torch.sigmoid(output_gate)
    return System.from_log_decay(qlstm_log_decay(forget, alpha)[..., None], write[..., None], read[..., None], u=x)


def from_rglru(x: Tensor, recurrence_gate: Tensor, input_gate: Tensor, a: Tensor) -> System:
    """RG-LRU; arguments as for :func:`softgate.attention.rglru_scan`. n = 1, all factors per channel."""
    for name, tensor in (("x", x), ("recurrence_gate", recurrence_gate), ("input_gate", input_gate), ("a", a)):
        check_float_tensor(name, tensor)
    log_decay = rglru_log_decay(recurrence_gate, a)
    write = rglru_input_factor(log_decay, input_gate)[..., None]
    return System.from_log_decay(log_decay[..., None], write, torch.ones_like(write), u=x)
