"""Rounding tensors to the grids of integer arithmetic, and the hooks that do so inside any model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softgate.diagnostics._running import Inputs, run_model
from softgate.errors import StateError

__all__: list[str] = []

WeightRange = Literal["minmax", "mse"]

#: Shares of the largest weight that are tried as the end of the grid.
_MSE_CANDIDATES = tuple(share / 50 for share in range(10, 51))


def round_weights(weight: Tensor, bits: int, estimator: WeightRange) -> Tensor:
    """``weight`` on the symmetric grid ``s · {-2^(b-1) + 1, …, 2^(b-1) - 1}``, one s for the tensor."""
    wide = weight.detach().double()
    largest, levels = wide.abs().max(), 2 ** (bits - 1) - 1
    if largest == 0:
        return weight.detach().clone()

    def rounded(end: Tensor) -> Tensor:
        return (wide / end * levels).round().clamp(-levels, levels) * end / levels

    ends = [largest * share for share in _MSE_CANDIDATES] if estimator == "mse" else [largest]
    best = min(ends, key=lambda end: float((rounded(end) - wide).square().sum()))
    return rounded(best).to(weight.dtype)


def round_activations(x: Tensor, low: float, high: float, bits: int) -> Tensor:
    """``x`` on the asymmetric grid of 2^b equal steps from ``low`` to ``high``, on which 0 lies exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return torch.zeros_like(x)
    steps = 2**bits - 1
    step = (high - low) / steps
    zero_point = round(-low / step)
    wide = x.double()
    return ((wide / step).round() + zero_point).clamp(0, steps).sub(zero_point).mul(step).to(x.dtype)


def batch_range(x: Tensor, percentile: float) -> tuple[float, float]:
    """Smallest and largest entry, or the entries that leave ``100 - percentile`` percent outside on either side."""
    flat = x.detach().flatten().float()
    if percentile >= 100.0:
        return float(flat.min()), float(flat.max())
    rank = max(round(percentile / 100.0 * flat.numel()), 1)
    return float(flat.kthvalue(flat.numel() - rank + 1).values), float(flat.kthvalue(rank).values)


class Activations:
    """Ranges of every activation of a model, learned from batches and then used as static grids.

    Hooks see the output of every module and the input of every module without children (which catches what is computed
    between modules); tensors that never cross the border of a module stay as they are. A module that is called several
    times in one pass (a dropout or activation that two places share) has a range for each time.

    Args:
        bits: of the grids.
        percentile: of a batch's entries inside its range, 100 for all.
        momentum: share of the old range when a batch's is averaged in.
    """

    def __init__(self, bits: int, percentile: float, momentum: float) -> None:
        self.bits, self.percentile, self.momentum = bits, percentile, momentum
        self.ranges: dict[str, tuple[float, float]] = {}
        self.learning = True
        self.calls: Counter[str] = Counter()

    @contextmanager
    def attached(self, model: nn.Module, names: Iterable[str]) -> Iterator[None]:
        """Hooks on the modules called ``names``."""
        with ExitStack() as stack:
            stack.callback(model.register_forward_pre_hook(lambda _module, _args: self.calls.clear()).remove)
            for name in names:
                module = model.get_submodule(name)
                hooks = [module.register_forward_hook(self._after(name))]
                if next(module.children(), None) is None:
                    hooks.append(module.register_forward_pre_hook(self._before(name)))
                for hook in hooks:
                    stack.callback(hook.remove)
            yield

    def _before(self, name: str) -> Callable[..., Any]:
        return lambda _module, args: self._map(self._key(name, "input"), args)

    def _after(self, name: str) -> Callable[..., Any]:
        return lambda _module, _args, output: self._map(self._key(name, "output"), output)

    def _key(self, name: str, end: str) -> str:
        key = f"{end} of {name}"
        self.calls[key] += 1
        return key if self.calls[key] == 1 else f"{key}, call {self.calls[key]}"

    def _map(self, key: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._one(key, value) if value.is_floating_point() and value.numel() else value
        if type(value) in (tuple, list):
            return type(value)(self._map(f"{key}, part {index + 1}", item) for index, item in enumerate(value))
        return value

    def _one(self, key: str, x: Tensor) -> Tensor:
        if self.learning:
            self._learn(key, x)
            return x
        if key not in self.ranges:
            raise StateError(f"calib never reached the {key}, which the evaluation uses: its range is not known")
        return round_activations(x, *self.ranges[key], self.bits)

    def _learn(self, key: str, x: Tensor) -> None:
        if not bool(x.isfinite().all()):
            raise StateError(f"the {key} holds NaN or infinities: there is no range to quantise")
        new = batch_range(x, self.percentile)
        old = self.ranges.get(key, new)
        kept = self.momentum
        self.ranges[key] = (kept * old[0] + (1 - kept) * new[0], kept * old[1] + (1 - kept) * new[1])


def call_order(model: nn.Module, inputs: Inputs) -> list[str]:
    """Names of the modules in the order in which their forward passes end, repetitions included."""
    order: list[str] = []
    with ExitStack() as stack:
        for name, module in model.named_modules():
            hook = module.register_forward_hook(lambda _m, _a, _o, name=name: order.append(name))
            stack.callback(hook.remove)
        run_model(model, inputs)
    return order


def final_head(model: nn.Module, order: Sequence[str]) -> str | None:
    """The last ``nn.Linear`` that runs; None if none does."""
    return next((name for name in reversed(order) if isinstance(model.get_submodule(name), nn.Linear)), None)


@contextmanager
def rounded_weights(
    model: nn.Module, excluded: Callable[[str], bool], bits: int | None, estimator: WeightRange
) -> Iterator[int]:
    """Every parameter with two or more dimensions on its grid inside, the parameters themselves again afterwards.

    The modules get other parameters for the time, so that one shared with an excluded module stays exact there.
    """
    originals: list[tuple[nn.Module, str, nn.Parameter]] = []
    for name, module in model.named_modules():
        if bits is None or excluded(name):
            continue
        for key, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter.ndim >= 2 and parameter.is_floating_point() and parameter.numel():
                originals.append((module, key, parameter))
    try:
        for module, key, parameter in originals:
            assert bits is not None
            rounded = round_weights(parameter, bits, estimator)
            setattr(module, key, nn.Parameter(rounded, requires_grad=parameter.requires_grad))
        yield len(originals)
    finally:
        for module, key, parameter in originals:
            setattr(module, key, parameter)
