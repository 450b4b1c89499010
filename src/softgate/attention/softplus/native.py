"""LSSA and LSSAR by the C++ kernels; the formulas are those of :mod:`softgate.attention.softplus.tiled`.

The kernels start from normalised queries and keys and take the factor and the level of each row as arrays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate.attention import native_flash
from softgate.attention.native_flash import Inputs, Plan
from softgate.attention.softplus.reference import (
    LengthScale,
    Phi,
    level,
    score_factor,
    softplus_attention_reference,
    unit_vectors,
)
from softgate.dispatch import mode

#: Transforms of torch run the reference. The kernels are as exact, but a high power shows every rounding; where nothing
#: is at stake, plain calls give the bits that transformed ones give.
_FEW_SCORES = 256


def refuses(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *positional: Any,
    reweight_power: float | None = 15.0,
    phi: Phi = "softplus",
    backend: str = "auto",
    **options: Any,
) -> str | None:
    """Say why this call cannot run here, None if it can."""
    if phi != "softplus":
        return f"no kernel for phi={phi!r}"
    if reweight_power is not None and (reweight_power != int(reweight_power) or reweight_power > 1024):
        return "only integer powers up to 1024"
    if backend == "auto" and mode() != "native" and query.shape[-2] * key.shape[-2] < _FEW_SCORES:
        return "so small a score matrix costs little whole"
    return native_flash.refusal(query, key, value, attn_mask, dropout_p, backend)


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    reweight_power: float | None = 15,
    offset: float = 1.0,
    offset_min_keys: int = 3,
    length_scale: LengthScale = "log",
    normalize_qk: bool = True,
    phi: Phi = "softplus",
    window: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Arguments and result of :func:`softgate.attention.softplus_attention`."""
    mask = native_flash.flat_mask(attn_mask, query, key.shape[-2])
    q_BHTD, k_BGSD, v_BGSD = (native_flash.flat(x) for x in (query, key, value))
    with torch.no_grad():
        look = Plan("softplus", 1.0, is_causal, window)
        count_BHT = native_flash.count_keys(look, Inputs(q_BHTD, k_BGSD, v_BGSD, mask))
        factor = score_factor(count_BHT, query.shape[-1], scale, length_scale, normalize_qk)
        level_BHT = level(count_BHT, offset, offset_min_keys)
    if normalize_qk:
        q_BHTD, k_BGSD = unit_vectors(q_BHTD), unit_vectors(k_BGSD)
    plan = Plan(
        "softplus" if reweight_power is None else "reweighted",
        1.0 if isinstance(factor, Tensor) else float(factor),
        is_causal,
        window,
        power=int(reweight_power or 1),
    )
    rows = factor if isinstance(factor, Tensor) else None
    inputs = Inputs(q_BHTD, k_BGSD, v_BGSD, mask, row_scale=rows, counts=count_BHT, offset=level_BHT)

    def reference(query: Tensor, key: Tensor, value: Tensor, _: Tensor | None) -> Tensor:
        return softplus_attention_reference(
            query * factor[..., None] if isinstance(factor, Tensor) else query * factor,
            key,
            value,
            mask,
            is_causal=is_causal,
            scale=1.0,
            reweight_power=reweight_power,
            offset=offset,
            offset_min_keys=offset_min_keys,
            length_scale="none",
            normalize_qk=False,
            window=window,
        )

    return native_flash.attend(plan, inputs, reference).reshape(*query.shape[:-1], value.shape[-1])
