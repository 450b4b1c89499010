"""What goes from stage to stage: a tensor, or tuples, lists and dicts of batch-first tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from softgate.errors import bad_type, bad_value


def leaves(state: Any) -> Iterator[Tensor]:
    """The tensors inside ``state``."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for item in state.values():
            yield from leaves(item)
    elif isinstance(state, tuple | list):
        for item in state:
            yield from leaves(item)


def mapped(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``state`` with every tensor changed; what is no tensor stays."""
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, Mapping):
        return {key: mapped(item, change) for key, item in state.items()}
    if isinstance(state, tuple | list):
        return type(state)(mapped(item, change) for item in state)
    return state


def count_rows(state: Any, name: str = "x") -> int:
    """Number of samples in ``state``; raise unless all its tensors are batch-first and of one batch."""
    sizes = {tensor.shape[0] if tensor.ndim else None for tensor in leaves(state)}
    if not sizes:
        bad_type(name, state, "a tensor, or tuples, lists or dicts of tensors")
    if len(sizes) > 1 or None in sizes:
        shapes = [tuple(tensor.shape) for tensor in leaves(state)]
        bad_value(name, shapes, "batch-first tensors of one batch")
    return int(next(iter(sizes)) or 0)


def take(state: Any, rows: Tensor) -> Any:
    """The samples ``rows`` of ``state``, copied."""
    return mapped(state, lambda tensor: tensor.index_select(0, rows))


def first(state: Any, count: int = 1) -> Any:
    """The first ``count`` samples of ``state``, a view."""
    return mapped(state, lambda tensor: tensor[:count])
