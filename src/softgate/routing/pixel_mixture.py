"""One map out of several: a weighted mean at every pixel, with weights of a coarser grid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate._checks import check_float_tensor, check_same_device
from softgate._math.masks import accumulation_dtype
from softgate.dispatch import call
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_value, check_choice
from softgate.registry import Kernel, method, record_of
from softgate.routing import _pixel_bands

__all__ = ["pixelwise_mixture", "resize_weights"]

Upsample = Literal["nearest", "bilinear"]
_UPSAMPLE = ("nearest", "bilinear")


def resize_weights(weights: Tensor, size: tuple[int, int], upsample: Upsample = "nearest") -> Tensor:
    """Bring gate weights to the resolution of the maps; they still sum to one at every pixel.

    Args:
        weights: (B, E, h, w).
        size: (H, W), no smaller than (h, w).
        upsample: ``"nearest"`` or ``"bilinear"`` (pixel centres, no aligned corners).

    Returns:
        (B, E, H, W), float32 for 16-bit weights.

    Raises:
        ArgumentTypeError: ``weights`` is no floating-point tensor.
        ArgumentValueError: a shape or option is not allowed.

    Example:
        >>> import torch
        >>> resize_weights(torch.tensor([[[[0.25, 0.75]]]]), (1, 4))
        tensor([[[[0.2500, 0.2500, 0.7500, 0.7500]]]])

    Paper: Redesigning Multi-Scale Neural Network for Crowd Counting, arXiv 2208.02894, section 3.
    """
    check_float_tensor("weights", weights)
    check_choice("upsample", upsample, _UPSAMPLE)
    if weights.ndim != 4:
        bad_value("weights", tuple(weights.shape), "of shape (B, E, h, w)")
    h, w = weights.shape[-2:]
    if not (0 < h <= size[0] and 0 < w <= size[1]):
        bad_value("weights", tuple(weights.shape), f"of a grid that is not empty and no finer than {tuple(size)}")
    return _resized(weights, size, upsample)


def _resized(weights: Tensor, size: tuple[int, int], upsample: Upsample) -> Tensor:
    wide = weights.to(accumulation_dtype(weights.dtype))
    rows, columns = size[0] // weights.shape[-2], size[1] // weights.shape[-1]
    if upsample == "bilinear":
        return F.interpolate(wide, size, mode="bilinear")
    if (rows * weights.shape[-2], columns * weights.shape[-1]) == tuple(size):
        # exact; F.interpolate multiplies positions by a rounded 1 / ratio
        return wide.repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return F.interpolate(wide, size, mode="nearest")


def _reference(maps: Tensor, weights: Tensor, *, upsample: Upsample = "nearest") -> Tensor:
    """``D = Σ_e w_e m_e`` at every pixel, the weights resized to the maps."""
    m_BECHW = maps.unsqueeze(2) if maps.ndim == 4 else maps
    w_BEHW = _resized(weights, (maps.shape[-2], maps.shape[-1]), upsample)
    return (w_BEHW.unsqueeze(2) * m_BECHW.to(accumulation_dtype(maps.dtype))).sum(1).to(maps.dtype)


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    def gate(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).softmax(1).to(dtype)

    yield (draw(2, 3, 4, 6), gate(2, 3, 2, 2)), {}
    yield (draw(2, 2, 3, 4, 4), gate(2, 2, 4, 4)), {}
    yield (draw(1, 3, 5, 7), gate(1, 3, 2, 3)), {}
    yield (draw(1, 3, 6, 6), gate(1, 3, 3, 2)), {"upsample": "bilinear"}
    yield (draw(2, 1, 4, 4), torch.ones(2, 1, 2, 2, dtype=dtype)), {}
    yield (draw(0, 2, 4, 4), gate(0, 2, 2, 2)), {}
    yield (draw(2, 4, 6, 3).transpose(-1, -2), gate(2, 4, 2, 1).transpose(-1, -2)), {}
    channels_last = draw(2, 4, 4, 4).contiguous(memory_format=torch.channels_last)
    yield (channels_last, gate(2, 4, 2, 2)), {}
    yield (draw(2, 2, 2, 32, 36), gate(2, 2, 8, 12)), {}  # enough for the kernel


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    maps, weights = torch.ones(2, 3, 4, 4), torch.ones(2, 3, 2, 2)
    yield (maps[0], weights), {}, ArgumentValueError, "maps"
    yield (maps[:, :, :0], weights), {}, ArgumentValueError, "maps"
    yield (maps, weights[0]), {}, ArgumentValueError, "weights"
    yield (maps, weights[:, :2]), {}, ArgumentValueError, "weights"
    yield (maps, weights[:1]), {}, ArgumentValueError, "weights"
    yield (maps, torch.ones(2, 3, 8, 2)), {}, ArgumentValueError, "weights"
    yield (maps.long(), weights), {}, ArgumentTypeError, "maps"
    yield (maps, weights.double()), {}, ArgumentTypeError, "weights"
    yield (maps, weights), {"upsample": "cubic"}, ArgumentValueError, "upsample"
    yield (maps[:, :0], weights[:, :0]), {}, ArgumentValueError, "maps"


@method(
    site="routing",
    family="custom",
    paper="density-experts-crowd-counting",
    source="section 3, e_i = w_i1 d_j + w_i2 d_k and D = Σ_i w_i e_i",
    reference=_reference,
    kernels=(Kernel("bands", _pixel_bands.run, _pixel_bands.refuses),),
    samples=_samples,
    bad_inputs=_bad_inputs,
)
def pixelwise_mixture(maps: Tensor, weights: Tensor, *, upsample: Upsample = "nearest") -> Tensor:
    """Weighted sum of the experts' maps at every pixel.

    With weights that sum to one the result lies between the smallest and the largest map at every pixel, equal weights
    give the average and one-hot weights one expert's map. The weights may come from a coarser grid: each of them then
    counts for a block of pixels, and no weights of the maps' size are formed.

    Args:
        maps: (B, E, H, W), one map per expert, or (B, E, C, H, W).
        weights: (B, E, h, w) with h ≤ H and w ≤ W, such as one group of :class:`softgate.routing.PixelwiseGate`; of the
            dtype of ``maps``, or float32 for 16-bit maps.
        upsample: how the weights reach the pixels, ``"nearest"`` or ``"bilinear"``.

    Returns:
        (B, 1, H, W) or (B, C, H, W), in the dtype of ``maps`` (16-bit maps are summed in float32).

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes that do not fit, or an unknown ``upsample``.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[[0.0, 4.0]], [[1.0, 8.0]]]])
        >>> pixelwise_mixture(maps, torch.tensor([[[[0.25]], [[0.75]]]]))
        tensor([[[[0.7500, 7.0000]]]])

    Paper: Redesigning Multi-Scale Neural Network for Crowd Counting, arXiv 2208.02894, section 3.
    """
    check_float_tensor("maps", maps)
    check_float_tensor("weights", weights)
    check_choice("upsample", upsample, _UPSAMPLE)
    check_same_device(maps=maps, weights=weights)
    if maps.ndim not in (4, 5) or 0 in maps.shape[1:]:
        bad_value("maps", tuple(maps.shape), "of shape (B, E, H, W) or (B, E, C, H, W), only B may be 0")
    if weights.ndim != 4 or weights.shape[:2] != maps.shape[:2]:
        bad_value("weights", tuple(weights.shape), f"of shape ({maps.shape[0]}, {maps.shape[1]}, h, w)")
    if not all(0 < low <= high for low, high in zip(weights.shape[-2:], maps.shape[-2:], strict=True)):
        bad_value("weights", tuple(weights.shape), f"of a grid that is not empty and no finer than {maps.shape[-2:]}")
    if weights.dtype not in (maps.dtype, accumulation_dtype(maps.dtype)):
        raise ArgumentTypeError(
            f"weights must have the dtype of maps, {maps.dtype}, or that of its sums, got {weights.dtype}"
        )
    return call(record_of(pixelwise_mixture), maps, weights, upsample=upsample)
