"""Plain-torch softmax-free attention: the formula as it stands, for every dtype, device and transform.

Shape suffixes: B batch and heads (any number of leading dimensions), N tokens, M landmarks, D features.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from softgate._math import masks
from softgate.attention.soft.gaussian import gaussian
from softgate.attention.soft.newton import Alpha, add_ridge, newton_inverse

Inverse = Literal["newton", "cholesky", "pinv"]
INVERSES = ("newton", "cholesky", "pinv")


def landmark_core(
    landmarks_BMD: Tensor,
    *,
    normalized: bool,
    inverse: Inverse,
    newton_iters: int,
    ridge: float,
    alpha: Alpha,
    implicit_grad: bool,
) -> Tensor:
    """The (…, M, M) matrix between the two kernels: (A + ridge I)⁻¹, for SOFT++ between two D^(-1/2), D = diag(A 1)."""
    gram_BMM = gaussian(landmarks_BMD, landmarks_BMD)
    if inverse == "newton":
        core_BMM = newton_inverse(gram_BMM, newton_iters, ridge, alpha, implicit_grad)
    elif inverse == "cholesky":
        core_BMM = torch.cholesky_inverse(torch.linalg.cholesky(add_ridge(gram_BMM, ridge)))
    else:
        core_BMM = torch.linalg.pinv(add_ridge(gram_BMM, ridge), hermitian=True)
    if not normalized:
        return core_BMM
    scale_BM = gram_BMM.sum(-1).rsqrt()
    return scale_BM.unsqueeze(-1) * core_BMM * scale_BM.unsqueeze(-2)


def output_and_working_dtype(query: Tensor, value: Tensor, landmarks: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Dtype of the result, and the one everything is computed in.

    Inside autocast inputs may differ and the result has autocast's dtype, but nothing is rounded before: like cdist,
    which torch's autocast keeps in float32, the kernel needs the digits of the points.
    """
    widest = torch.promote_types(torch.promote_types(query.dtype, value.dtype), landmarks.dtype)
    cast = masks.autocast_dtype(query)
    result = query.dtype if cast is None or widest is torch.float64 else cast
    return result, masks.accumulation_dtype(widest)


def nystrom(
    query_BND: Tensor, value_BND: Tensor, landmarks_BMD: Tensor, core_BMM: Tensor, keep_BN: Tensor | None
) -> Tensor:
    """P · (core · (Pᵀ V)), the order that costs N · M · D; rows of P that are not kept are 0."""
    p_BNM = gaussian(query_BND, landmarks_BMD)
    if keep_BN is not None:
        p_BNM = p_BNM.masked_fill(~keep_BN.unsqueeze(-1), 0.0)
    return p_BNM @ (core_BMM @ (p_BNM.mT @ value_BND))


def softmax_free_attention_reference(
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
    """Arguments and result of :func:`softgate.attention.softmax_free_attention`."""
    result, dtype = output_and_working_dtype(query, value, landmarks)
    with masks.without_autocast(query):
        wide = landmarks.to(dtype)
        core_BMM = landmark_core(
            wide,
            normalized=normalized,
            inverse=inverse,
            newton_iters=newton_iters,
            ridge=ridge,
            alpha=alpha,
            implicit_grad=implicit_grad,
        )
        keep_BN = None if key_padding_mask is None else key_padding_mask.unsqueeze(-2)
        return nystrom(query.to(dtype), value.to(dtype), wide, core_BMM, keep_BN).to(result)
