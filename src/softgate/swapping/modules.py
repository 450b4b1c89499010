"""What the adapters for single attention modules (torch.nn, timm) share: the class swap, the gate, the self-test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.swapping.attention_methods import AttentionChoice, gate_factor
from softgate.swapping.selftest import Outputs, Probe, check_finite, check_reach, frozen, reach
from softgate.swapping.undo import Undo

GATE_NAME = "softgate_gate"
_LENGTH = 6
#: A test call of one module: hidden states (B, T, features) and a mask (B, 1, T, T), True = attend, or None.
Call = Callable[[nn.Module, Tensor, Tensor | None], Tensor]


def swap_module(
    name: str, module: nn.Module, cls: type[nn.Module], choice: AttentionChoice, length: int | None, undo: Undo
) -> None:
    """Turn ``module`` into ``cls``, which computes its attention by ``choice``; parameters stay the same objects."""
    undo.set(module, "softgate_choice", choice)
    undo.set(module, "softgate_length", length)
    undo.set(module, "__class__", cls)


def add_gate(module: Any, width: int, heads: int, features: int, choice: AttentionChoice, undo: Undo) -> None:
    """Give ``module`` a linear map to gate logits, zero at first."""
    elementwise = choice.options.get("granularity", "elementwise") == "elementwise"
    like = next(module.parameters())
    gate = nn.Linear(
        width, heads * features if elementwise else heads, bias=False, device=like.device, dtype=like.dtype
    )
    nn.init.zeros_(gate.weight)
    undo.set(module, GATE_NAME, gate.train(module.training))


def gated(module: Any, out_BHTD: Tensor, hidden: Tensor) -> Tensor:
    """Multiply an attention output (B, H, T, D) by the gate of ``module`` for the queries' hidden states (B, T, E)."""
    gate = getattr(module, GATE_NAME)
    logits = gate(hidden).unflatten(-1, (out_BHTD.shape[1], -1)).transpose(1, 2)
    return (out_BHTD * gate_factor(logits, float(module.softgate_choice.options.get("scale", 2.0)))).to(out_BHTD.dtype)


def run_training(module: nn.Module, run: Callable[[], Any]) -> None:
    """Run ``module`` once in training mode: dropout of attention weights, which not every method has, is on."""
    module.train()
    run()
    module.eval()


def prove_module(
    name: str, module: nn.Module, width: int, call: Call, change: Callable[[], None], what: str, *, masks: bool = True
) -> None:
    """Run ``change`` (the swap of ``module``) and refuse it if a masked token reaches the output.

    Where the model is not known to pass masks (``masks=False``), a method that takes none and says so is kept.
    """
    like = next(module.parameters())
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(2, _LENGTH, width, generator=generator).to(like) for _ in range(2))
    causal = torch.ones(_LENGTH, _LENGTH, dtype=torch.bool, device=like.device).tril().expand(2, 1, -1, -1)
    keep = torch.ones(2, 1, 1, _LENGTH, dtype=torch.bool, device=like.device)
    keep[0, ..., :2], keep[1, ..., -2:] = False, False
    last, padded = x.clone(), torch.where(keep.view(2, _LENGTH, 1), x, noise)
    last[:, -1] = noise[:, -1]
    square = keep.expand(2, 1, _LENGTH, _LENGTH)
    tests = [
        Probe("future tokens", {"x": x, "mask": causal}, {"x": last, "mask": causal}, own=(last != x).any(-1)),
        Probe("padding", {"x": x, "mask": square}, {"x": padded, "mask": square}, own=(padded != x).any(-1)),
    ]

    def run(inputs: dict[str, Any]) -> Outputs:
        return [(name or type(module).__name__, call(module, inputs["x"], inputs["mask"]))]

    kind = type(module).__name__
    with frozen(module):
        before = [reach(run, probe) for probe in tests]
        change()
        try:
            for probe, expected in zip(tests, before, strict=True):
                check_reach(what, probe, expected, reach(run, probe))
                check_finite(what, run(probe.before))
            run_training(module, lambda: run(tests[0].before))
        except (ArgumentTypeError, ArgumentValueError) as error:
            if masks:
                raise StateError(f"{what} cannot be put into {kind} ({name}): {error}") from error
            check_finite(what, run({"x": x, "mask": None}))
            run_training(module, lambda: run({"x": x, "mask": None}))
        except StateError as error:
            raise StateError(f"{what} cannot be put into {kind} ({name}): {error}") from error
