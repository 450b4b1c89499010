"""GroupSort and MaxMin: sort the entries of small groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor, nn

from softgate._checks import check_dim, check_float_tensor, check_sizes
from softgate.errors import ArgumentValueError, bad_type
from softgate.registry import method

__all__ = ["GroupSort", "MaxMin", "group_sort"]


def check_flag(name: str, value: Any) -> None:
    """Raise unless ``value`` is a bool."""
    if not isinstance(value, bool):
        bad_type(name, value, "a bool")


def in_groups(x: Tensor, group_size: int, dim: int) -> Tensor:
    """``x`` (…, n, …) with its axis ``dim`` last and cut into groups, (…, n / group_size, group_size)."""
    check_float_tensor("x", x)
    dim = check_dim(dim, x.ndim)
    if x.ndim == 0 or x.shape[dim] % group_size:
        raise ArgumentValueError(
            f"x must have a size at dim={dim} that group_size={group_size} divides, got shape {tuple(x.shape)}"
        )
    return x.movedim(dim, -1).unflatten(-1, (x.shape[dim] // group_size, group_size))


def from_groups(grouped: Tensor, dim: int) -> Tensor:
    """What :func:`in_groups` made, back in its place."""
    return grouped.flatten(-2).movedim(-1, dim)


def _samples(dtype: torch.dtype, generator: Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    yield (draw(3, 12),), {}
    yield (draw(24),), {}
    yield (draw(2, 12, 3, 5).contiguous(memory_format=torch.channels_last),), {"dim": 1}
    yield (draw(12, 14).t()[::2],), {}
    yield (draw(4, 0),), {}
    yield (draw(0, 12),), {}
    yield (draw(5, 2400),), {"dim": -1}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x = torch.ones(2, 12)
    yield (x.long(),), {}, TypeError, "x"
    yield (x.tolist(),), {}, TypeError, "x"
    yield (x[:, :11],), {}, ArgumentValueError, "group_size"
    yield (torch.tensor(1.0),), {}, ArgumentValueError, "group_size"
    yield (x,), {"group_size": 0}, ArgumentValueError, "group_size"
    yield (x,), {"group_size": 2.0}, TypeError, "group_size"
    yield (x,), {"dim": 2}, ArgumentValueError, "dim"
    yield (x,), {"descending": 1}, TypeError, "descending"


@method(
    site="activations",
    family="custom",
    paper="lipsdp-quadratic-constraints",
    source="arXiv 2401.14033, GroupSort and MaxMin (sec. 2)",
    variants={"default": {}, "fours": {"group_size": 4, "descending": True}},
    samples=_samples,
    bad_inputs=_bad_inputs,
)
def group_sort(x: Tensor, group_size: int = 2, dim: int = -1, *, descending: bool = False) -> Tensor:
    """Sort the entries of consecutive groups along ``dim``.

    Groups of two are MaxMin: the smaller entry and the larger. The map permutes, so it keeps the sum and the length of
    every group, and it lengthens no difference in any p-norm: its Lipschitz constant is 1.

    Args:
        x: (…, n, …), real floating point; n a multiple of ``group_size``.
        group_size: entries per group, positive.
        dim: the axis that is cut into groups; the channels of images are at 1.
        descending: the largest entry first.

    Returns:
        Of the shape and dtype of ``x``. A NaN makes its whole group NaN. The gradient is the permutation's; where two
        entries are equal, groups of two share it between them.

    Raises:
        ArgumentTypeError: ``x`` is not a real floating-point tensor, or an option has the wrong type.
        ArgumentValueError: ``group_size`` is not positive or does not divide n, or ``dim`` is out of range.

    Example:
        >>> import torch
        >>> group_sort(torch.tensor([3.0, 1.0, -2.0, 5.0]))
        tensor([ 1.,  3., -2.,  5.])

    Paper: arXiv 2401.14033; GroupSort: Anil, Lucas and Grosse, arXiv 1811.05381.
    """
    check_sizes(group_size=group_size)
    check_flag("descending", descending)
    grouped = in_groups(x, group_size, dim)
    if group_size == 2:  # many times faster than sorting
        first, second = grouped.unbind(-1)
        pair = (torch.minimum(first, second), torch.maximum(first, second))
        return from_groups(torch.stack(pair[::-1] if descending else pair, -1), dim)
    ordered = grouped.sort(-1).values  # NaN comes last
    ordered = torch.where(ordered[..., -1:].isnan(), ordered[..., -1:], ordered)
    return from_groups(ordered.flip(-1) if descending else ordered, dim)


class GroupSort(nn.Module):
    """Module form of :func:`group_sort`.

    Args:
        group_size: entries per group.
        dim: the axis that is cut into groups; 1 for the channels of images.
        descending: the largest entry first.

    Shapes: (…, n, …) -> the same.

    Raises:
        ArgumentTypeError: an option has the wrong type.
        ArgumentValueError: ``group_size`` is not positive; at the call, it does not divide the size of the axis.

    Example:
        >>> import torch
        >>> GroupSort(3)(torch.tensor([3.0, 1.0, 2.0]))
        tensor([1., 2., 3.])
    """

    def __init__(self, group_size: int = 2, dim: int = -1, descending: bool = False) -> None:
        super().__init__()
        check_sizes(group_size=group_size)
        if isinstance(dim, bool) or not isinstance(dim, int):
            bad_type("dim", dim, "an int")
        check_flag("descending", descending)
        self.group_size, self.dim, self.descending = group_size, dim, descending

    def forward(self, x: Tensor) -> Tensor:
        """Sort the groups."""
        return group_sort(x, self.group_size, self.dim, descending=self.descending)

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return f"group_size={self.group_size}, dim={self.dim}" + (", descending=True" if self.descending else "")


class MaxMin(GroupSort):
    """GroupSort of pairs: the smaller entry of each, then the larger.

    Args:
        dim: the axis that is cut into pairs; 1 for the channels of images.

    Shapes: (…, n, …) with an even n -> the same.

    Raises:
        ArgumentTypeError: ``dim`` is no int.
        ArgumentValueError: at the call, an odd size.

    Example:
        >>> import torch
        >>> MaxMin()(torch.tensor([3.0, 1.0]))
        tensor([1., 3.])
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__(2, dim)

    def extra_repr(self) -> str:
        """The axis, for ``repr``."""
        return f"dim={self.dim}"
