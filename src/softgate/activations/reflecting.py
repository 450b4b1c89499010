"""Householder activations: reflect each group of entries that lies on one side of a plane."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor, nn

from softgate._checks import check_float_tensor, check_same_device, check_sizes
from softgate._math import masks
from softgate.activations.group_sorting import check_flag, from_groups, in_groups
from softgate.errors import ArgumentValueError, bad_type
from softgate.registry import method

__all__ = ["Householder", "householder"]


def _samples(dtype: torch.dtype, generator: Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    yield (draw(3, 12), draw(4, 3)), {}
    yield (draw(24), draw(2)), {}
    yield (draw(2, 12, 3, 5).contiguous(memory_format=torch.channels_last), draw(6, 2)), {"dim": 1}
    yield (draw(12, 14).t()[::2], draw(4)), {}
    yield (draw(0, 12), draw(3, 4)), {}
    yield (draw(4, 0), draw(2)), {}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x, v = torch.ones(2, 12), torch.ones(6, 2)
    yield (x.long(), v), {}, TypeError, "x"
    yield (x, v.long()), {}, TypeError, "v"
    yield (x, v.tolist()), {}, TypeError, "v"
    yield (x, torch.ones(5)), {}, ArgumentValueError, "group_size"
    yield (x, torch.ones(5, 2)), {}, ArgumentValueError, "v"
    yield (x, torch.ones(1, 6, 2)), {}, ArgumentValueError, "v"
    yield (x, torch.ones(2, 0)), {}, ArgumentValueError, "v"
    yield (x, v), {"dim": 2}, ArgumentValueError, "dim"


@method(
    site="activations",
    family="custom",
    paper="lipsdp-quadratic-constraints",
    source="arXiv 2401.14033, Householder activation (sec. 2)",
    samples=_samples,
    bad_inputs=_bad_inputs,
    error_scale="tensor",
    deviations=("v is divided by its norm; the paper takes unit vectors",),
)
def householder(x: Tensor, v: Tensor, dim: int = -1) -> Tensor:
    r"""Reflect every group on the negative side of its plane.

    .. math:: \phi(x) = x - 2 \min(u^T x, 0)\, u, \qquad u = v / |v|

    which is x where :math:`u^T x > 0` and :math:`(I - 2 u u^T) x` elsewhere. Lengths of groups and their parts
    orthogonal to v are kept; the Lipschitz constant is 1 in the Euclidean norm. Pairs with v = (1, -1) are MaxMin with
    the larger entry first.

    Args:
        x: (…, n, …), real floating point.
        v: (n / group_size, group_size), a vector per group, or (group_size,), the same for all; not zero.
        dim: the axis that is cut into groups of ``group_size``; the channels of images are at 1.

    Returns:
        Of the shape and dtype of ``x``; 16-bit types are computed in float32. A NaN makes its whole group NaN, as a
        vector v of zeros does.

    Raises:
        ArgumentTypeError: ``x`` or ``v`` is not a real floating-point tensor.
        ArgumentValueError: ``v`` has the wrong shape, its size does not divide n, or ``dim`` is out of range.

    Example:
        >>> import torch
        >>> householder(torch.tensor([3.0, -1.0, -2.0, 5.0]), torch.tensor([0.0, 1.0]))
        tensor([ 3.,  1., -2.,  5.])

    Paper: arXiv 2401.14033; the activation: Singla, Singla and Feizi, arXiv 2108.04062.
    """
    check_float_tensor("v", v)
    if v.ndim not in (1, 2) or v.shape[-1] == 0:
        raise ArgumentValueError(f"v must be (groups, group_size) or (group_size,), got shape {tuple(v.shape)}")
    grouped = in_groups(x, v.shape[-1], dim)
    check_same_device(x=x, v=v)
    if v.ndim == 2 and v.shape[0] != grouped.shape[-2]:
        raise ArgumentValueError(f"v must have a row for each of {grouped.shape[-2]} groups, got {v.shape[0]}")
    with masks.without_autocast(x):
        wide = grouped.to(masks.accumulation_dtype(x.dtype))
        u = v.to(wide.dtype)
        u = u / u.square().sum(-1, keepdim=True).sqrt()
        side = (wide * u).sum(-1, keepdim=True)
        return from_groups(wide - 2.0 * side.clamp_max(0.0) * u, dim).to(x.dtype)


class Householder(nn.Module):
    """Householder activation with a vector for every group, learned or not.

    It starts as the reflection that exchanges the even and the odd entries' mean, which for pairs is MaxMin with the
    larger entry first.

    Args:
        channels: size of the axis, a multiple of ``group_size``; None for one vector that all groups share.
        group_size: entries per group, at least 2.
        dim: the axis that is cut into groups; 1 for the channels of images.
        learnable: False keeps v as a buffer.
        device: of v.
        dtype: of v.

    Attributes:
        v: (channels / group_size, group_size) or (group_size,).

    Shapes: (…, n, …) -> the same.

    Raises:
        ArgumentTypeError: an option has the wrong type.
        ArgumentValueError: sizes that are not positive or do not divide each other; at the call, an input without
            ``channels`` entries at ``dim``.

    Example:
        >>> import torch
        >>> Householder(4, learnable=False)(torch.tensor([3.0, 1.0, -2.0, 5.0])).round()
        tensor([ 3.,  1.,  5., -2.])
    """

    v: Tensor

    def __init__(
        self,
        channels: int | None = None,
        group_size: int = 2,
        dim: int = -1,
        learnable: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(group_size=group_size)
        if group_size < 2:
            raise ArgumentValueError(f"group_size must be at least 2, got {group_size}")
        if channels is not None:
            check_sizes(channels=channels)
            if channels % group_size:
                raise ArgumentValueError(f"channels must be a multiple of group_size={group_size}, got {channels}")
        if isinstance(dim, bool) or not isinstance(dim, int):
            bad_type("dim", dim, "an int")
        check_flag("learnable", learnable)
        self.channels, self.group_size, self.dim, self.learnable = channels, group_size, dim, learnable
        v = torch.ones(group_size, device=device, dtype=dtype)
        v[1::2] = -1.0
        v = v / group_size**0.5
        if channels is not None:
            v = v.repeat(channels // group_size, 1)
        if learnable:
            self.v = nn.Parameter(v)
        else:
            self.register_buffer("v", v)

    def forward(self, x: Tensor) -> Tensor:
        """Reflect the groups."""
        return householder(x, self.v, self.dim)

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return f"channels={self.channels}, group_size={self.group_size}, dim={self.dim}" + (
            "" if self.learnable else ", learnable=False"
        )
