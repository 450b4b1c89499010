"""Running a model to look at it: in eval mode, on a tensor or a mapping of keyword arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from softgate.errors import bad_type

__all__: list[str] = []

#: What a model takes: one tensor, or a mapping of keyword arguments.
Inputs = Tensor | Mapping[str, Any]


def run_model(model: nn.Module, inputs: Inputs, **extra: Any) -> Any:
    """Call ``model`` on ``inputs``."""
    return model(inputs, **extra) if isinstance(inputs, Tensor) else model(**inputs, **extra)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode again afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def checked_batches(name: str, batches: Any) -> Iterator[Inputs]:
    """The batches one by one, each checked to be something :func:`run_model` takes."""
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        bad_type(name, batches, "an iterable of batches, each a tensor or a mapping of keyword arguments")
    for batch in batches:
        if not isinstance(batch, Tensor | Mapping):
            bad_type(f"a batch of {name}", batch, "a tensor or a mapping of keyword arguments")
        yield batch


def first_tensor(output: Any) -> Tensor | None:
    """The hidden states in a module's output: a tensor, or the first entry of a tuple or a mapping of tensors."""
    if isinstance(output, Mapping):
        output = next(iter(output.values()), None)
    if isinstance(output, tuple | list):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) and output.is_floating_point() else None
