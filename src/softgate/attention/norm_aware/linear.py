"""The same in plain torch with memory linear in the length: what ``torch.compile`` traces.

Shape suffixes as in ``reference``; M chunks of C rows.
"""

from __future__ import annotations

import functools

from torch import Tensor
from torch.nn.functional import pad

from softgate._math import masks
from softgate.attention.norm_aware.reference import Mapped, norm_aware_reference


def sums_of_keys(mapped: Mapped, is_causal: bool, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Numerators (…, H, T, Dv) and sums of weights (…, H, T, 1), by way of Σ φ(k) vᵀ and Σ φ(k)."""
    heads = mapped.phi_q_BHTF.shape[-3]
    if is_causal:
        return _causal(mapped, heads, chunk_size)
    kv_BGFD, z_BGF1 = mapped.turned_k_BGSF.mT @ mapped.v_BGSD, mapped.phi_k_BGSF.sum(-2).unsqueeze(-1)
    mixed_BHTD = mapped.turned_q_BHTF @ masks.expand_kv_heads(kv_BGFD, heads)
    return mixed_BHTD, mapped.phi_q_BHTF @ masks.expand_kv_heads(z_BGF1, heads)


def _causal(mapped: Mapped, heads: int, chunk_size: int) -> tuple[Tensor, Tensor]:
    queries, keys = mapped.phi_q_BHTF.shape[-2], mapped.v_BGSD.shape[-2]
    chunks = (max(queries, keys) + chunk_size - 1) // chunk_size

    def cut(x_BHSF: Tensor) -> Tensor:
        """(…, H, M, C, F); zeros in front, so that the last query and the last key share their place."""
        missing = chunks * chunk_size - x_BHSF.shape[-2]
        return masks.expand_kv_heads(pad(x_BHSF, (0, 0, missing, 0)), heads).unflatten(-2, (chunks, chunk_size))

    phi_q, phi_k, turned_q, turned_k, v = (cut(x) for x in mapped)
    kv = pad((turned_k.mT @ v).cumsum(-3), (0, 0, 0, 0, 1, 0))[..., :-1, :, :]  # before each chunk
    z = pad(phi_k.sum(-2).cumsum(-2), (0, 0, 1, 0))[..., :-1, :]
    mixed = turned_q @ kv + (turned_q @ turned_k.mT).tril() @ v
    sums = phi_q @ z.unsqueeze(-1) + (phi_q @ phi_k.mT).tril().sum(-1, keepdim=True)
    first = chunks * chunk_size - queries
    return mixed.flatten(-3, -2)[..., first:, :], sums.flatten(-3, -2)[..., first:, :]


norm_aware_linear_plain = functools.partial(norm_aware_reference, mix=sums_of_keys)
