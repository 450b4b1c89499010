"""Softplus attention (LSSA) and its re-weighted form (LSSAR)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._math import masks
from softgate.attention.softplus import native, tiled, triton
from softgate.attention.softplus.arguments import check_options
from softgate.attention.softplus.reference import (
    LengthScale,
    Phi,
    lssa_weights_reference,
    softplus_attention_reference,
)
from softgate.dispatch import call, transform_reason
from softgate.errors import StateError, check_choice
from softgate.registry import Kernel, method, record_of

__all__ = ["lssa_weights", "softplus_attention"]

_BACKENDS = ("auto", "reference", "native", "tiled", "triton")


@method(
    site="attention",
    family="attention",
    paper="softplus-attention",
    source="LSSA (softplus of cosines scaled by ln d ln N, divided by their sum) and LSSAR (re-weighting by a power)",
    reference=softplus_attention_reference,
    kernels=(
        Kernel("native", native.run, native.refuses),
        Kernel("triton", triton.run, triton.refuses),
        Kernel("tiled", tiled.run, tiled.refuses),
    ),
    variants={
        "default": {},
        "lssa": {"reweight_power": None},
        "cubic": {"reweight_power": 3},
        "fractional": {"reweight_power": 1.5, "phi": "sigmoid"},
    },
    laws=("decode_equals_prefill", "value_linear"),
    masked_rows="zeros",
    exempt={
        "scale_argument": "queries are normalised, so a factor of theirs is no scale; without scale= it is ln D, times "
        "ln N of the row",
    },
    smallest_width=2,
    deviations=(
        "a row counts as tied, and keeps its first-stage weights, up to 16 eps: the published formula is 0/0 there",
        "the offset starts where a query sees more than 3 keys, whatever its index (equal for plain causal attention)",
        "finite entries of a float mask are added to the scores; the paper has no bias",
    ),
)
def softplus_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    reweight_power: float | None = 15.0,
    offset: float = 1.0,
    offset_min_keys: int = 3,
    length_scale: LengthScale = "log",
    normalize_qk: bool = True,
    phi: Phi = "softplus",
    window: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Softplus attention with re-weighting (LSSAR), or without it (LSSA): weights that stay sharp at any length.

    For a query that sees N keys, with unit vectors q̂, k̂::

        z_j = ln D · ln N · q̂·k̂_j                A_j  = softplus(z_j) / Σ softplus(z)        (LSSA)
        u_j = relu(N·A_j - 1)                    A'_j = u_jᵖ / Σ uᵖ                          (LSSAR)

    N·A = 1 is uniform attention: the second stage drops every key below the row's average exactly and sharpens the
    rest. Called like :func:`torch.nn.functional.scaled_dot_product_attention`. Multiplying queries or keys by positive
    numbers changes nothing; adding a constant to the scores does (unlike softmax).

    Args:
        query: (…, H, T, D), D ≥ 2 unless ``scale`` is given.
        key: (…, G, S, D); G = H, or H a multiple of G with ``enable_gqa``.
        value: (…, G, S, Dv).
        attn_mask: broadcastable to (…, H, T, S); bool (True = attend) or float, added to z (-inf masks the key; a
            masked key does not count in N).
        dropout_p: probability of dropping a weight A', in [0, 1).
        is_causal: query i sees key j where j <= i + S - T (aligned at the bottom right, so that a single query sees
            the whole cache). Combines with ``attn_mask``.
        scale: factor of the similarities q̂·k̂ (before that of ``length_scale``); None is ln D, or 1/√D with
            ``normalize_qk=False``. Not 1/√D as elsewhere: cosines are at most 1.
        enable_gqa: query head h uses key/value head h // (H/G).
        reweight_power: p ≥ 1 of the second stage, 15 for long contexts, 3 for the training length only; None leaves
            the second stage out (LSSA).
        offset: the level subtracted from N·A, ≥ 0.
        offset_min_keys: a query that sees this many keys or fewer has level 0 (the first three rows of a causal mask:
            with so few keys, dropping those below average starves early training).
        length_scale: ``"log"`` multiplies the scores of a row by ln N, ``"none"`` does not.
        normalize_qk: False takes q·k instead of cosines.
        phi: the positive map: ``"softplus"``, ``"sigmoid"``, ``"relu"`` or ``"exp"`` (softmax).
        window: each query sees its last ``window`` keys only (itself included); without ``is_causal`` to both sides.
        backend: ``"auto"``, ``"reference"`` (plain torch, T x S memory), ``"tiled"`` (plain torch, O(T·D) memory),
            ``"native"`` (likewise, C++, float32 on the CPU) or ``"triton"``.

    Returns:
        (…, H, T, Dv) in the dtype of ``query`` (autocast's dtype inside autocast); everything between is computed in
        float32 for 16-bit inputs, and from unrounded inputs under autocast. Weights are in [0, 1] and sum to 1. A query
        without any allowed key gives 0 and zero gradients, and so does S = 0. If no key exceeds the level (all tie, up
        to 16 eps), the row keeps its first-stage weights. Queries and keys without an entry above 1e-12 count as zero
        vectors: cosine 0, no gradient. With ``phi="relu"``, or scores far below 0, φ can be 0 for a whole row, which
        then gives 0. NaN in query reaches its row, in key or value its head.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes, devices or numbers that do not fit; D = 1 without ``scale`` (ln 1 = 0 would make
            every row uniform).
        StateError: ``backend`` names a kernel that cannot run this call.

    Example:
        >>> import torch
        >>> key = torch.eye(4)[None, None]
        >>> softplus_attention(key[..., :1, :], key, key, reweight_power=None)
        tensor([[[[0.4975, 0.1675, 0.1675, 0.1675]]]])
        >>> softplus_attention(key[..., :1, :], key, key)
        tensor([[[[1., 0., 0., 0.]]]])

    Paper: Softplus Attention with Re-weighting Boosts Length Extrapolation in Large Language Models, arXiv 2501.13428.
    """
    masks.check_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, window)
    check_options(query.shape[-1], scale, reweight_power, offset, offset_min_keys, length_scale, normalize_qk, phi)
    check_choice("backend", backend, _BACKENDS)
    arguments = (query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    options: dict[str, Any] = {
        "reweight_power": reweight_power,
        "offset": offset,
        "offset_min_keys": offset_min_keys,
        "length_scale": length_scale,
        "normalize_qk": normalize_qk,
        "phi": phi,
        "window": window,
        "backend": backend,
    }
    if backend == "reference":
        return softplus_attention_reference(*arguments, **options)
    record = record_of(softplus_attention)
    if backend != "auto" and not torch.compiler.is_compiling():
        kernel = next(k for k in record.kernels if k.name == backend)
        reason = transform_reason(*arguments) or kernel.refuses(*arguments, **options)
        if reason is not None:
            raise StateError(f"backend={backend!r} cannot run this call: {reason}")
    return call(record, *arguments, **options)


def lssa_weights(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    reweight_power: float | None = 15.0,
    offset: float = 1.0,
    offset_min_keys: int = 3,
    length_scale: LengthScale = "log",
    normalize_qk: bool = True,
    phi: Phi = "softplus",
    window: int | None = None,
) -> Tensor:
    """The weights of :func:`softplus_attention`, all T x S of them, for looking at.

    Args:
        query: (…, H, T, D).
        key: (…, G, S, D).
        attn_mask: as in :func:`softplus_attention`, and so are all further arguments.
        is_causal: aligned at the bottom right.
        scale: factor of the similarities, ln D if None.
        enable_gqa: query head h uses key head h // (H/G).
        reweight_power: p of the second stage, None for the first stage alone.
        offset: the level subtracted in the second stage.
        offset_min_keys: queries that see this many keys or fewer have level 0.
        length_scale: ``"log"`` or ``"none"``.
        normalize_qk: False takes q·k instead of cosines.
        phi: the positive map.
        window: number of keys each query sees.

    Returns:
        (…, H, T, S), rows sum to 1 (or are 0 without any allowed key), in float32 for 16-bit inputs.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes, devices or numbers that do not fit.

    Example:
        >>> import torch
        >>> key = torch.eye(4)[None, None]
        >>> lssa_weights(key, key, is_causal=True, reweight_power=None)[0, 0, 1]
        tensor([0.3504, 0.6496, 0.0000, 0.0000])

    Paper: arXiv 2501.13428.
    """
    masks.check_attention(query, key, key, attn_mask, 0.0, is_causal, scale, enable_gqa, window)
    check_options(query.shape[-1], scale, reweight_power, offset, offset_min_keys, length_scale, normalize_qk, phi)
    with masks.without_autocast(query):
        return lssa_weights_reference(
            query,
            key,
            attn_mask,
            is_causal,
            scale,
            reweight_power=reweight_power,
            offset=offset,
            offset_min_keys=offset_min_keys,
            length_scale=length_scale,
            normalize_qk=normalize_qk,
            phi=phi,
            window=window,
        )
