"""Norm-aware linear attention (NaLaFormer): linear attention that gets back the query norm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number
from softgate._math import masks
from softgate.attention.norm_aware import chunked, linear, triton
from softgate.attention.norm_aware.features import (
    Direction,
    check_feature_map,
    in_paper_basis,
    key_features,
    query_features,
)
from softgate.attention.norm_aware.reference import Result, norm_aware_reference
from softgate.attention.norm_aware.rotation import Rope, check_rope, line_rope, map_rope
from softgate.attention.norm_aware.state import LinearAttentionCache, LinearAttentionState, check_state
from softgate.attention.relu_linear import check_key_padding
from softgate.dispatch import call
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, bad_type, bad_value, check_choice
from softgate.registry import Kernel, method, record_of

__all__ = [
    "LinearAttentionCache",
    "LinearAttentionState",
    "line_rope",
    "map_rope",
    "norm_aware_features",
    "norm_aware_linear_attention",
]

_BACKENDS = ("auto", "reference", "chunked", "triton")


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Inputs for the conformance suite: padding, rotary positions, several chunks, states."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    def qkv(heads: int, kv_heads: int, queries: int, keys: int, dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
        return draw(2, heads, queries, dim), draw(2, kv_heads, keys, dim), draw(2, kv_heads, keys, dim)

    keep = torch.rand(2, 9, generator=generator) > 0.3
    keep[1] = False  # a sequence of padding
    yield qkv(2, 2, 5, 9), {"key_padding_mask": keep}
    yield qkv(4, 2, 9, 9), {"attn_mask": keep[:, None, None], "is_causal": True, "enable_gqa": True, "chunk_size": 2}
    yield qkv(2, 1, 21, 21), {"is_causal": True, "enable_gqa": True, "chunk_size": 4, "norm_scale": 0.5}
    table = line_rope(torch.arange(9), 4)
    rope = (table[0].to(dtype), table[1].to(dtype))
    yield qkv(2, 2, 9, 9), {"rope": rope}
    yield qkv(2, 1, 7, 9), {"rope": rope, "is_causal": True, "enable_gqa": True, "chunk_size": 3}
    yield qkv(2, 2, 4, 5), {"power": 2.0, "tau": 0.8, "eps": 0.1}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    q = torch.ones(2, 2, 4, 4)
    good = (q, q, q)
    rope = line_rope(torch.arange(4), 4)
    per_query = torch.ones(4, 4, dtype=torch.bool)
    values: tuple[tuple[str, Any, type[Exception]], ...] = (
        ("attn_mask", per_query, ArgumentValueError),
        ("attn_mask", per_query.expand(2, 2, 4, 4), ArgumentValueError),
        ("attn_mask", torch.ones(2, 2, 1, 4, dtype=torch.bool), ArgumentValueError),
        ("attn_mask", torch.zeros(1, 4), ArgumentTypeError),
        ("dropout_p", 0.1, ArgumentValueError),
        ("scale", 0.5, ArgumentValueError),
        ("direction", "sine", ArgumentValueError),
        ("power", 0.0, ArgumentValueError),
        ("power", -3.0, ArgumentValueError),
        ("tau", 0.0, ArgumentValueError),
        ("alpha", float("nan"), ArgumentValueError),
        ("norm_scale", -1.0, ArgumentValueError),
        ("norm_scale", "sqrt", ArgumentTypeError),
        ("eps", 0.0, ArgumentValueError),
        ("key_padding_mask", torch.ones(2, 4), ArgumentTypeError),
        ("key_padding_mask", torch.ones(2, 3, dtype=torch.bool), ArgumentValueError),
        ("key_padding_mask", torch.ones(2, 1, 1, 4, dtype=torch.bool), ArgumentValueError),
        ("rope", rope[0], ArgumentTypeError),
        ("rope", (rope[0][:3], rope[1][:3]), ArgumentValueError),
        ("rope", (rope[0], rope[1].long()), ArgumentTypeError),
        ("chunk_size", 0, ArgumentValueError),
        ("initial_state", (q, q), ArgumentTypeError),
        ("initial_state", LinearAttentionState(q, q, q), ArgumentValueError),
    )
    for name, value, error in values:
        yield good, {name: value}, error, name


@method(
    site="attention",
    family="attention",
    paper="nalaformer",
    source="sections on norm-aware query features and sign-preserving directions; the authors' NALA.py",
    reference=norm_aware_reference,
    kernels=(Kernel("triton", triton.run, triton.refuses), Kernel("chunked", chunked.run, chunked.refuses)),
    variants={"default": {}, "cosine": {"direction": "cosine"}},
    laws=("decode_equals_prefill", "value_linear"),
    masked_rows="zeros",
    masks="keys",
    fixed=("dropout_p", "scale"),
    samples=_samples,
    bad_inputs=_bad_inputs,
    deviations=(
        "a query of norm 0 gives 0, the authors' code gives NaN",
        "causal attention, grouped queries, padding, norm_scale and a different power are not in the authors' code",
    ),
)
def norm_aware_linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    direction: Direction = "polarity",
    power: float = 3.0,
    tau: float = 0.5,
    alpha: float = 20.0,
    norm_scale: float | None = None,
    eps: float = 1e-6,
    rope: Rope | None = None,
    key_padding_mask: Tensor | None = None,
    chunk_size: int = 64,
    initial_state: LinearAttentionState | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Result:
    """Linear attention whose weights sharpen with the query's norm: ``y = φ(q) Σ φ(k) vᵀ / (φ(q)·Σ φ(k) + n·eps)``.

    With l1 normalisation the norm of a query cancels in linear attention; here it sets the exponent of the features:
    ``|q/‖q‖|^p`` with p = power·(tau + tanh ‖q‖), and ``|k|^power`` for keys. Signs are kept by two features per
    coordinate, so that coordinates of opposite sign (nearly) do not meet. Time and memory are linear in the length.

    Args:
        query: (…, H, T, D).
        key: (…, G, S, D); G = H, or H a multiple of G with ``enable_gqa``.
        value: (…, G, S, Dv).
        attn_mask: bool, True = attend, the same for all heads and queries: broadcastable to (…, 1, 1, S). Other masks
            do not factor over the keys and are refused.
        dropout_p: only 0: there are no weights to drop.
        is_causal: query i sees key j where j <= i + S - T (aligned at the bottom right).
        scale: only None: scaling keys cancels, and queries act through ``norm_scale``.
        enable_gqa: query head h uses key/value head h // (H/G).
        direction: ``"polarity"`` (the authors' code) gives each sign a feature of its own; ``"cosine"`` (the paper's
            formula) takes cosine and sine of the angle π/4·tanh(alpha·x/‖x‖). They agree as alpha grows.
        power: λ > 0, exponent of keys and factor of the queries' exponent.
        tau: τ > 0; the queries' exponent runs from power·tau to power·(tau + 1).
        alpha: steepness of the angle, ``"cosine"`` only.
        norm_scale: factor of ‖q‖ inside tanh, 1 if None. 1/√D keeps tanh from saturating for queries of ordinary size;
            0 fixes the exponent at power·tau and so removes the norm.
        eps: added to the mean weight per key, positive.
        rope: rotary tables (cos, sin), each (S, D), see :func:`map_rope`; they turn the *features* of the numerator, so
            that weights may be negative then and need not sum to one. The queries stand at the last T positions.
        key_padding_mask: bool (…, S), True = real token; combines with ``attn_mask``.
        chunk_size: queries and keys of a causal chunk that meet through their products; changes speed, not the result.
        initial_state: sums over earlier tokens, which all queries see; as returned by an earlier call.
        return_state: also return the sums over all keys, of constant size.
        backend: ``"auto"``, ``"reference"`` (plain torch, all T x S weights), ``"chunked"`` or ``"triton"``.

    Returns:
        (…, H, T, Dv) in the dtype of ``query`` (autocast's dtype inside autocast); everything is computed in float32
        for 16-bit inputs. With ``return_state`` a pair of it and a :class:`LinearAttentionState`. A query without keys,
        of norm 0, or whose keys are all 0 gives 0. Keys above 2^20 are scaled down per head first, which cancels; not
        so with states, where keys beyond 1e12 overflow in float32.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes, devices or numbers that do not fit.
        StateError: ``backend`` names a kernel that cannot run this call.

    Example:
        >>> import torch
        >>> q = k = torch.eye(3)[None, None]
        >>> norm_aware_linear_attention(q, k, torch.arange(3.0).reshape(1, 1, 3, 1), eps=1e-9).flatten()
        tensor([0., 1., 2.])

    Paper: Norm x Direction, arXiv 2506.21137 (NaLaFormer); default direction as in the authors' code.
    """
    masks.check_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    _check_limits(attn_mask, dropout_p, scale)
    check_feature_map(direction, power, tau, alpha, norm_scale)
    check_number("eps", eps, low=0.0, low_open=True, high_open=True)
    check_rope(rope, query, key)
    if key_padding_mask is not None:
        check_key_padding(key_padding_mask, key)
    _check_chunk_size(chunk_size)
    check_state(initial_state, query, key, value)
    if not isinstance(return_state, bool):
        bad_type("return_state", return_state, "a bool")
    check_choice("backend", backend, _BACKENDS)
    arguments = (query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    options: dict[str, Any] = {
        "direction": direction,
        "power": float(power),
        "tau": float(tau),
        "alpha": float(alpha),
        "norm_scale": norm_scale,
        "eps": float(eps),
        "rope": rope,
        "key_padding_mask": key_padding_mask,
        "chunk_size": chunk_size,
        "initial_state": initial_state,
        "return_state": return_state,
    }
    if backend == "reference":
        return norm_aware_reference(*arguments, **options)
    if torch.compiler.is_compiling():  # traceable, and unlike the reference it needs no T x S memory
        return linear.norm_aware_linear_plain(*arguments, **options)
    if backend != "auto":
        kernel = next(k for k in record_of(norm_aware_linear_attention).kernels if k.name == backend)
        reason = kernel.refuses(*arguments, **options, backend=backend)
        if reason is not None:
            raise StateError(f"backend={backend!r} cannot run this call: {reason}")
    return call(record_of(norm_aware_linear_attention), *arguments, **options, backend=backend)


def _check_limits(attn_mask: Tensor | None, dropout_p: float, scale: float | None) -> None:
    """Refuse what linear attention cannot do: masks of single pairs, dropout of weights, scaled scores."""
    if dropout_p != 0.0:
        bad_value("dropout_p", dropout_p, "0: linear attention has no weights to drop")
    if scale is not None:
        bad_value("scale", scale, "None: there are no scores to scale (norm_scale acts on the query norm)")
    if attn_mask is None:
        return
    if attn_mask.dtype is not torch.bool:
        raise ArgumentTypeError(f"attn_mask must be bool here, nothing can be added to scores; got {attn_mask.dtype}")
    if any(size != 1 for size in attn_mask.shape[-3:-1]):
        raise ArgumentValueError(
            f"attn_mask must be the same for all heads and queries, of shape (..., 1, 1, keys): other masks do not "
            f"factor over the keys; got {tuple(attn_mask.shape)}"
        )


def _check_chunk_size(chunk_size: Any) -> None:
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int):
        bad_type("chunk_size", chunk_size, "a positive int")
    if chunk_size < 1:
        bad_value("chunk_size", chunk_size, "a positive int")


def _feature_samples(
    dtype: torch.dtype, generator: torch.Generator
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for shape in ((2, 3, 4), (5, 1), (0, 4)):
        yield (torch.randn(shape, dtype=dtype, generator=generator),), {}
        yield (torch.randn(shape, dtype=dtype, generator=generator),), {"role": "key"}
    yield (torch.randn((2, 5), dtype=dtype, generator=generator),), {"power": 2.0, "norm_scale": 0.0}


@method(
    site="attention",
    family="custom",
    paper="nalaformer",
    source="feature maps of queries and keys",
    variants={"default": {}, "cosine": {"direction": "cosine"}},
    samples=_feature_samples,
)
def norm_aware_features(
    x: Tensor,
    role: str = "query",
    *,
    direction: Direction = "polarity",
    power: float = 3.0,
    tau: float = 0.5,
    alpha: float = 20.0,
    norm_scale: float | None = None,
) -> Tensor:
    """The features whose products are the weights of :func:`norm_aware_linear_attention`, before normalisation.

    Args:
        x: queries or keys (…, D).
        role: ``"query"`` (powers of the direction, sharper for longer vectors) or ``"key"`` (powers of the vector).
        direction: see :func:`norm_aware_linear_attention`, as for the other arguments.
        power: λ.
        tau: τ.
        alpha: steepness of the angle.
        norm_scale: factor of the norm.

    Returns:
        (…, 2D) in the dtype of ``x``, computed in float32 for 16-bit inputs. All are ≥ 0 with ``"polarity"``, the first
        half with ``"cosine"``; products of query and key features are ≥ 0 in both.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: numbers out of range, or no features.

    Example:
        >>> import torch
        >>> norm_aware_features(torch.tensor([[2.0, -1.0]]), "key")
        tensor([[8., 0., 0., 1.]])

    Paper: Norm x Direction, arXiv 2506.21137 (NaLaFormer).
    """
    check_float_tensor("x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ArgumentValueError(f"x must have at least one feature in its last dimension, got {tuple(x.shape)}")
    check_choice("role", role, ("query", "key"))
    constants = check_feature_map(direction, power, tau, alpha, norm_scale)
    features = query_features if role == "query" else key_features
    with masks.without_autocast(x):
        phi = features(x.to(masks.accumulation_dtype(x.dtype)), constants)
        return in_paper_basis(phi, constants).to(x.dtype)
