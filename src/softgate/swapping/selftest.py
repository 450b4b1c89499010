"""Proof, before a swapped model is handed out, that attention sees nothing it did not see before.

A small batch runs through the original and through the swapped model, then again with one thing changed: the last token
(may reach no earlier position), tokens under the padding mask (may reach no other position). Every output of every
attention call is compared. Wherever the change did not reach the original's output it must not reach the swapped one's.
The last check compares decoding from a cache with computing everything at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import StateError

#: Differences up to this share of the largest output count as rounding.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
#: What an attention call gave, with a name for messages: [(module name, (B, T, …)), …].
Outputs = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class Probe:
    """One change of the input that must not be seen from everywhere.

    Attributes:
        hidden: what the change stands for, in words ("future tokens").
        before: inputs.
        after: the same inputs with the change.
        own: bool (B, T), the positions that were changed. They see their own change, as queries, under any mask.
    """

    hidden: str
    before: dict[str, Any]
    after: dict[str, Any]
    own: Tensor | None = None


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradients, evaluation mode, and the random state of the caller untouched; every mode comes back after."""
    modes = [(module, module.training) for module in model.modules()]
    state = torch.get_rng_state()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_rng_state(state)
        for module, mode in modes:
            module.training = mode


def reach(run: Callable[[dict[str, Any]], Outputs], probe: Probe) -> list[tuple[str, Tensor]]:
    """For each attention call the positions (B, T) that the change reached, as bools."""
    return [
        (name, _differs(before, after))
        for (name, before), (_, after) in zip(run(probe.before), run(probe.after), strict=True)
    ]


def check_reach(what: str, probe: Probe, original: list[tuple[str, Tensor]], swapped: list[tuple[str, Tensor]]) -> None:
    """Raise unless the change reaches no position in the swapped model that it did not reach in the original."""
    if len(original) != len(swapped):
        raise StateError(
            f"{what} does not reach every attention of this model: {len(swapped)} of {len(original)} calls"
        )
    if not any(bool(reached.any()) for _, reached in original):
        raise StateError(
            f"the self-test of {what} shows nothing: changing {probe.hidden} changes no attention output at all"
        )
    for (_, allowed), (name, reached) in zip(original, swapped, strict=True):
        if probe.own is not None and probe.own.shape == reached.shape:
            allowed = allowed | probe.own.to(allowed.device)
        if bool((reached & ~allowed).any()):
            raise StateError(f"{what} would let {name} see {probe.hidden}: refused, and the model is left as it was")


def check_finite(what: str, outputs: Outputs) -> None:
    """Raise if an attention output is not finite."""
    for name, out in outputs:
        if not bool(out.isfinite().all()):
            raise StateError(
                f"{what} gives NaN or infinite outputs in {name}: refused, and the model is left as it was"
            )


def check_equal(what: str, meaning: str, got: Tensor, expected: Tensor) -> None:
    """Raise unless both agree up to rounding (a hundred times that of one call, as whole models add up)."""
    tolerance = 100 * _ROUNDING[expected.dtype] * float(expected.abs().max())
    difference = float((got - expected).abs().max())
    if not difference <= tolerance:
        raise StateError(f"{what}: {meaning} differs by {difference:.1e} (allowed {tolerance:.1e}): refused")


def _differs(before: Tensor, after: Tensor) -> Tensor:
    """Positions (B, T) where two outputs (B, T, …) differ by more than rounding."""
    size = torch.maximum(before.abs().amax(), after.abs().amax())
    difference = (before - after).abs().flatten(2).amax(-1)
    return difference > _ROUNDING[before.dtype] * size
