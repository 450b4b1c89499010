"""One variant of a recorded op, as the checks call it: function, reference, float64 truth."""

from __future__ import annotations

import dataclasses
import inspect
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from softgate.registry import Method

__all__ = ["Call", "Subject", "cast", "copied", "tensors_of"]


@dataclass(frozen=True)
class Call:
    """Arguments of one call, and which positional ones a gradient is taken of."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    differentiable: tuple[int, ...] = (0,)
    note: str = ""

    def to(self, dtype: torch.dtype) -> Call:
        """The same call with every floating-point tensor in ``dtype``."""
        return dataclasses.replace(self, args=cast(self.args, dtype), kwargs=cast(dict(self.kwargs), dtype))

    def cloned(self) -> Call:
        """The same call on copies of the tensors."""
        return dataclasses.replace(self, args=copied(self.args), kwargs=copied(dict(self.kwargs)))


class Subject:
    """A variant of an op: calling it merges the variant's keyword arguments with those of the call."""

    def __init__(self, record: Method, variant: str) -> None:
        self.record = record
        self.variant = variant
        self.fixed = dict(record.variants[variant])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the public function with the variant's arguments, which ``kwargs`` may replace."""
        return self.record.function(*args, **{**self.fixed, **kwargs})

    def run(self, call: Call) -> Any:
        """Run the public function on ``call``."""
        return self(*call.args, **call.kwargs)

    def run_reference(self, call: Call) -> Any:
        """Run the plain-torch reference on ``call``.

        Keyword arguments that the reference does not know (``algorithm=``, ``out=``) choose an implementation and
        cannot change the result, so they are left out.
        """
        bound = self.parameters.bind(*call.args, **{**self.fixed, **call.kwargs})
        bound.apply_defaults()
        known = inspect.signature(self.record.reference).parameters
        if any(p.kind is p.VAR_KEYWORD for p in known.values()):
            return self.record.reference(*call.args, **{**self.fixed, **call.kwargs})
        passed = set(list(known)[: len(call.args)])
        named = {k: v for k, v in bound.arguments.items() if k in known and k not in passed}
        return self.record.reference(*call.args, **named)

    def truth(self, call: Call) -> list[Tensor]:
        """The reference's outputs in float64."""
        wide = call.to(torch.float64)
        fixed = Subject(self.record, self.variant)
        fixed.fixed = cast(fixed.fixed, torch.float64)
        return tensors_of(fixed.run_reference(wide))

    @cached_property
    def parameters(self) -> inspect.Signature:
        """Signature of the public function."""
        return inspect.signature(self.record.function)

    @cached_property
    def positional(self) -> tuple[str, ...]:
        """Names of the positional parameters of the public function."""
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return tuple(name for name, p in self.parameters.parameters.items() if p.kind in kinds)

    def accepts(self, *names: str) -> bool:
        """Whether the public function has all these parameters."""
        return all(name in self.parameters.parameters for name in names)

    def is_free(self, *names: str) -> bool:
        """Whether the function has these parameters, takes anything there and the variant leaves them to the caller."""
        return self.accepts(*names) and not any(name in self.fixed or name in self.limited for name in names)

    @property
    def limited(self) -> tuple[str, ...]:
        """Parameters of the family's signature of which the record says that they do not take everything."""
        return (*self.record.fixed, *(("attn_mask",) if self.record.masks != "any" else ()))

    def generator(self, *key: object) -> torch.Generator:
        """A generator seeded by the op's name and ``key``: the same inputs in every process and on every day."""
        text = f"{self.record.qualified_name}/{self.variant}/{key}"
        return torch.Generator().manual_seed(zlib.crc32(text.encode()))


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors inside tuples, lists, dicts and dataclasses, in order."""
    return list(_leaves(value))


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield from _leaves(getattr(value, entry.name))


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Copy ``value`` with every floating-point tensor inside converted to ``dtype``."""
    return _map(value, lambda t: t if not t.is_floating_point() or t.dtype == dtype else _copy(t, dtype))


def copied(value: Any) -> Any:
    """``value`` with a copy in place of every tensor inside."""
    return _map(value, _copy)


def _copy(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy that is a leaf like the original, with its ``grad``: some ops read that."""
    copy = tensor.detach().clone().to(dtype or tensor.dtype).requires_grad_(tensor.requires_grad)
    if tensor.is_leaf and tensor.grad is not None:
        copy.grad = tensor.grad.clone().to(copy.dtype)
    return copy


def _map(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_map(item, change) for item in value)
    return value
