"""Softmax as a module."""

from __future__ import annotations

from torch import Tensor, nn

from softgate.errors import bad_type, check_choice
from softgate.normalizers.two_pass.arguments import ALGORITHMS, EMPTY
from softgate.normalizers.two_pass.functions import softmax

__all__ = ["Softmax"]


class Softmax(nn.Module):
    """Module form of :func:`softgate.normalizers.softmax`; a drop-in for :class:`torch.nn.Softmax`.

    Args:
        dim: the dimension that sums to one.
        algorithm: how the CPU kernels compute it, see :func:`softgate.normalizers.softmax`.
        empty: what a row with nothing but ``-inf`` gives, ``"nan"`` or ``"zero"``.
    """

    def __init__(self, dim: int = -1, algorithm: str = "auto", empty: str = "nan") -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int):
            bad_type("dim", dim, "an int")
        check_choice("algorithm", algorithm, ALGORITHMS)
        check_choice("empty", empty, EMPTY)
        self.dim, self.algorithm, self.empty = dim, algorithm, empty

    def forward(self, x: Tensor) -> Tensor:
        """Softmax of ``x`` (any shape) along ``dim``."""
        return softmax(x, self.dim, algorithm=self.algorithm, empty=self.empty)

    def extra_repr(self) -> str:
        """Arguments, as shown by ``print(model)``."""
        return f"dim={self.dim}, algorithm={self.algorithm!r}, empty={self.empty!r}"
