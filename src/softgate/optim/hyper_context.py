"""The hyper-parameters that hold while a model runs, for layers that are called without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from torch import Tensor

from softgate.errors import StateError

__all__ = ["hyper"]


class _Current(NamedTuple):
    lam: Tensor | None
    values: Mapping[str, Tensor]


_CURRENT: ContextVar[_Current | None] = ContextVar("softgate_hyper", default=None)


@contextmanager
def hyper(lam: Tensor | None, values: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Give λ to all best-response layers that are called inside without one, however deep in a model they are.

    Args:
        lam: (B, H), (1, H) or (H,), as the layers take it; None turns the responses off.
        values: name -> values (B,) of the hyper-parameters, for :class:`softgate.optim.HyperDropout`.

    Example:
        >>> import torch
        >>> from softgate.optim import BestResponseLinear
        >>> layer, x, lam = BestResponseLinear(3, 2, n_hyper=1), torch.ones(4, 3), torch.ones(4, 1)
        >>> model = torch.nn.Sequential(layer)
        >>> with hyper(lam):
        ...     y = model(x)
        >>> torch.equal(y, layer(x, lam))
        True

    Paper: Self-Tuning Networks, arXiv 1903.03088.
    """
    token = _CURRENT.set(_Current(lam, values or {}))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def resolve(lam: Tensor | None) -> Tensor | None:
    """``lam`` itself, or that of the context."""
    current = _CURRENT.get() if lam is None else None
    return lam if current is None else current.lam


def current_value(name: str) -> Tensor:
    """Values of the hyper-parameter ``name`` in this context."""
    current = _CURRENT.get()
    values = {} if current is None else current.values
    if name not in values:
        raise StateError(
            f"no hyper-parameter {name!r} is given here (there is {', '.join(values) or 'none'}): run the model inside "
            "softgate.optim.hyper(lam, values)"
        )
    return values[name]
