"""Which tokens are the instruction, and which rows get the prompts of which adapter."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value

__all__ = ["Selection", "adapters_of_rows", "instruction_of", "select"]

_IGNORED = -100


@dataclass(frozen=True)
class Selection:
    """What one forward pass asks for.

    Attributes:
        instruction: (B, T) bool, the tokens that the prompts are computed from.
        groups: adapter and the rows that it serves, (b,) long; None stands for all rows.
    """

    instruction: Tensor
    groups: tuple[tuple[str, Tensor | None], ...]


def select(instruction: Tensor, names: Sequence[str | None]) -> Selection | None:
    """Group the rows by adapter; None if no row has one.

    Raises:
        ArgumentValueError: a row with an adapter has no instruction.
    """
    has_prompts = torch.tensor([name is not None for name in names], device=instruction.device)
    empty = (~instruction.any(-1) & has_prompts).nonzero().flatten().tolist()
    if empty:
        raise ArgumentValueError(
            f"instruction_mask must mark at least one token in every row, got none in rows {empty}: pass "
            "instruction_mask, or labels that are -100 in the instruction"
        )
    found = list(dict.fromkeys(name for name in names if name is not None))
    if not found:
        return None
    if len(found) == 1 and None not in names:
        return Selection(instruction, ((found[0], None),))
    rows = {name: [row for row, other in enumerate(names) if other == name] for name in found}
    groups = tuple((name, torch.tensor(chosen, device=instruction.device)) for name, chosen in rows.items())
    return Selection(instruction, groups)


def adapters_of_rows(names: Any, active: str, known: Collection[str], rows: int) -> list[str | None]:
    """The adapter of every row: ``names`` as given, repeated for beams, or the active one."""
    if names is None:
        return [active] * rows
    if isinstance(names, str) or not isinstance(names, Sequence):
        bad_type("adapter_names", names, "a list with one adapter name or None per row")
    for name in names:
        if name is not None and name not in known:
            raise ArgumentValueError(f"adapter_names must be among {sorted(known)} or None, got {name!r}")
    return [names[row // repeats(len(names), rows, "adapter_names")] for row in range(rows)]


def repeats(given: int, rows: int, name: str) -> int:
    """How often ``generate`` repeated every row (beams, several answers)."""
    if given == 0 or rows % given:
        bad_value(name, f"{given} rows", f"one entry for each of the {rows} rows of the batch")
    return rows // given


def instruction_of(given: Any, attention_mask: Any, labels: Any, like: Tensor) -> Tensor:
    """The instruction as a mask (B, T).

    Args:
        given: ``instruction_mask``, (B, T) bool or 0 and 1, or None.
        attention_mask: (B, T), or None where every token is attended to.
        labels: (B, T); without ``given`` what stands before the first label that counts is the instruction.
        like: the model's tokens (B, T) or embeddings (B, T, D).
    """
    rows, length = like.shape[:2]
    attended = torch.ones(rows, length, dtype=torch.bool, device=like.device)
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        attended = attention_mask[:, -length:].to(like.device, torch.bool)
    elif attention_mask is not None and given is None:
        raise ArgumentValueError("instruction_mask must be given where attention_mask does not have the shape (B, T)")
    if given is not None:
        return _checked(given, rows, length).to(like.device) & attended
    if labels is not None:
        return ((labels != _IGNORED).cumsum(-1) == 0).to(like.device) & attended
    return attended


def _checked(mask: Any, rows: int, length: int) -> Tensor:
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ArgumentTypeError(f"instruction_mask must be a tensor of bool or of 0 and 1, got {kind}")
    if mask.ndim != 2 or mask.shape[1] != length:
        bad_value("instruction_mask", tuple(mask.shape), f"of shape ({rows}, {length})")
    return mask.bool().repeat_interleave(repeats(len(mask), rows, "instruction_mask"), 0)
