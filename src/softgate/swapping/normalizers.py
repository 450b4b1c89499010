"""Exchange nn.Softmax modules for another map from scores to weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from softgate.errors import StateError
from softgate.swapping.undo import Undo


class RowMap(nn.Module):
    """A map of rows ``f(x, dim, **options)`` as a module, in the place of nn.Softmax."""

    def __init__(self, function: Callable[..., Tensor], dim: int, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.function, self.dim, self.options = function, dim, dict(options)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the map."""
        return self.function(input, self.dim, **self.options)

    def extra_repr(self) -> str:
        """Show the map and its axis."""
        return f"{getattr(self.function, '__name__', self.function)}, dim={self.dim}"


def softmax_places(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every (owner, name) of an nn.Softmax inside ``model``."""
    return [(m, name) for m in model.modules() for name, child in m.named_children() if type(child) is nn.Softmax]


def swap_softmax_modules(
    places: list[tuple[nn.Module, str]], function: Callable[..., Tensor], options: Mapping[str, Any], undo: Undo
) -> None:
    """Put ``function`` in the given places."""
    for owner, name in places:
        dim = getattr(owner, name).dim
        if dim is None:
            raise StateError(f"{type(owner).__name__}.{name} is nn.Softmax without a dim: its axis is not known")
        undo.set(owner, name, RowMap(function, dim, options).train(owner.training))
