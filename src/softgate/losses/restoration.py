"""Losses of image restoration: Charbonnier, differences of spectra, and their sum over stages and scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentTypeError, bad_type, bad_value, check_choice

__all__ = ["MaximLoss", "charbonnier", "frequency_l1"]

Reduction = Literal["mean", "sum", "none"]
FFTNorm = Literal["ortho", "backward", "forward"]
_REDUCTIONS, _NORMS = ("mean", "sum", "none"), ("ortho", "backward", "forward")


def charbonnier(input: Tensor, target: Tensor, eps: float = 1e-3, reduction: Reduction = "mean") -> Tensor:
    """A smooth absolute error, ``sqrt((input - target)² + eps²)``.

    Args:
        input: any shape.
        target: the shape and dtype of ``input``.
        eps: the value at 0, positive; in the unit of ``input``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or the shape of ``input``; float32 for 16-bit tensors; at least the absolute error and at least ``eps``.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes that differ, or options that are not allowed.

    Example:
        >>> charbonnier(torch.tensor([0.0, 3.0]), torch.zeros(2), eps=4.0, reduction="none")
        tensor([4., 5.])

    Paper: MAXIM, arXiv 2201.02973, section 3.4; Charbonnier et al. 1994.
    """
    difference = _difference(input, target)
    check_number("eps", eps, low=0.0, low_open=True, high_open=True)
    return _reduced((difference.square() + eps**2).sqrt(), reduction)


def frequency_l1(
    input: Tensor, target: Tensor, reduction: Reduction = "mean", *, fft_norm: FFTNorm = "ortho"
) -> Tensor:
    """Absolute values of the two-dimensional Fourier transform of ``input - target``.

    Args:
        input: (…, H, W).
        target: the shape and dtype of ``input``.
        reduction: ``"mean"`` over all frequencies, ``"sum"`` or ``"none"``.
        fft_norm: ``"ortho"`` divides the transform by the root of H W, so that its squares add up to those of the
            difference and the loss does not grow with the image; ``"backward"`` leaves it as it is, ``"forward"``
            divides by H W.

    Returns:
        Scalar, or the shape of ``input``; float32 for 16-bit tensors; zero only where both are equal.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes that differ, no image, or options that are not allowed.

    Example:
        >>> frequency_l1(torch.ones(2, 2), torch.zeros(2, 2), "none")
        tensor([[2., 0.],
                [0., 0.]])

    Paper: MAXIM, arXiv 2201.02973, section 3.4; MIMO-UNet, arXiv 2108.05054. Neither fixes the normalisation.
    """
    difference = _difference(input, target)
    if difference.ndim < 2 or 0 in difference.shape[-2:]:
        bad_value("input", tuple(input.shape), "of shape (…, H, W)")
    check_choice("fft_norm", fft_norm, _NORMS)
    return _reduced(torch.fft.fft2(difference, norm=fft_norm).abs(), reduction)


class MaximLoss(nn.Module):
    """Charbonnier plus ``lambda_freq`` times the spectral loss, summed over all stages and scales.

    Args:
        lambda_freq: weight of :func:`frequency_l1`, not negative.
        eps: of :func:`charbonnier`.
        fft_norm: of :func:`frequency_l1`.

    Shapes: outputs, a tensor (B, C, H, W) or nested lists of tensors whose sides are H and W over powers of 2; target
    (B, C, H, W) -> scalar. The target is scaled to smaller outputs as :class:`softgate.models.MAXIM` scales its images:
    every second pixel, nearest to the centre.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is not allowed, or shapes do not fit.

    Example:
        >>> outputs = [[torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 8, 8)]]
        >>> round(float(MaximLoss()(outputs, torch.zeros(1, 3, 8, 8))), 6)
        0.002

    Paper: MAXIM, arXiv 2201.02973, section 3.4. No training code is published; the constants are those of the paper.
    """

    def __init__(self, lambda_freq: float = 0.1, eps: float = 1e-3, fft_norm: FFTNorm = "ortho") -> None:
        super().__init__()
        self.lambda_freq = check_number("lambda_freq", lambda_freq, low=0.0, high_open=True)
        self.eps = check_number("eps", eps, low=0.0, low_open=True, high_open=True)
        check_choice("fft_norm", fft_norm, _NORMS)
        self.fft_norm: FFTNorm = fft_norm

    def forward(self, outputs: Tensor | Sequence[Tensor] | Sequence[Sequence[Tensor]], target: Tensor) -> Tensor:
        """The loss of ``outputs`` for the clean images ``target``."""
        check_float_tensor("target", target)
        if target.ndim != 4:
            bad_value("target", tuple(target.shape), "of shape (B, C, H, W)")
        found = _flat(outputs)
        if not found:
            bad_value("outputs", outputs, "at least one tensor")
        return torch.stack([self._one(output, target) for output in found]).sum()

    def _one(self, output: Tensor, target: Tensor) -> Tensor:
        check_float_tensor("outputs", output)
        if output.shape[2:] != target.shape[2:]:
            target = _scaled(target, output)
        loss = charbonnier(output, target, self.eps)
        if self.lambda_freq:
            loss = loss + self.lambda_freq * frequency_l1(output, target, fft_norm=self.fft_norm)
        return loss

    def extra_repr(self) -> str:
        """Its options."""
        return f"lambda_freq={self.lambda_freq}, eps={self.eps}, fft_norm={self.fft_norm!r}"


def _flat(outputs: Tensor | Sequence[Tensor] | Sequence[Sequence[Tensor]]) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    if not isinstance(outputs, Sequence) or isinstance(outputs, str):
        bad_type("outputs", outputs, "a tensor or nested lists of tensors")
    return [tensor for part in outputs for tensor in _flat(part)]


def _scaled(target: Tensor, output: Tensor) -> Tensor:
    height, width = target.shape[2:]
    times = height // output.shape[2] if output.ndim == 4 and output.shape[2] else 0
    if times < 2 or times & (times - 1) or [times * side for side in output.shape[2:]] != [height, width]:
        bad_value("outputs", tuple(output.shape), f"of sides {height} and {width} over one power of 2")
    return F.interpolate(target, output.shape[2:], mode="nearest-exact")


def _difference(input: Tensor, target: Tensor) -> Tensor:
    check_float_tensor("input", input)
    check_float_tensor("target", target)
    check_same_device(input=input, target=target)
    if target.shape != input.shape:
        bad_value("target", tuple(target.shape), f"of the shape {tuple(input.shape)} of input")
    if target.dtype != input.dtype:
        raise ArgumentTypeError(f"target must have the dtype of input, {input.dtype}, got {target.dtype}")
    wide = compute_dtype(input.dtype)
    return input.to(wide) - target.to(wide)


def _reduced(values: Tensor, reduction: Reduction) -> Tensor:
    check_choice("reduction", reduction, _REDUCTIONS)
    return values if reduction == "none" else values.mean() if reduction == "mean" else values.sum()
