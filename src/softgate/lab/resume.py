"""What a checkpoint must agree on with the run that continues it, and the state of objects beside the model."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from softgate.errors import ArgumentTypeError
from softgate.lab.checkpoint import CheckpointError


class Stateful(Protocol):
    """Anything else that must survive a kill: a running average, a sampler, a controller."""

    def state_dict(self) -> Mapping[str, Any]:
        """What to save."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Continue from what was saved."""


Restorable = Stateful | torch.Generator | np.random.Generator | random.Random


def state_of(item: Restorable) -> Any:
    """State of a generator, or of anything with ``state_dict``."""
    if isinstance(item, torch.Generator):
        return item.get_state()
    if isinstance(item, np.random.Generator):
        return item.bit_generator.state
    if isinstance(item, random.Random):
        return item.getstate()
    if hasattr(item, "state_dict") and hasattr(item, "load_state_dict"):
        return item.state_dict()
    kinds = "generators and objects with state_dict and load_state_dict"
    raise ArgumentTypeError(f"state must hold {kinds}, got {type(item).__name__}")


def restore_state(item: Restorable, state: Any) -> None:
    """Inverse of :func:`state_of`."""
    if isinstance(item, torch.Generator):
        item.set_state(state)
    elif isinstance(item, np.random.Generator):
        item.bit_generator.state = state
    elif isinstance(item, random.Random):
        item.setstate(state)
    else:
        item.load_state_dict(state)


def plain(value: Any) -> Any:
    """``value`` as it looks after a trip through JSON; what JSON does not know is named by its type."""
    return json.loads(json.dumps(value, default=lambda item: type(item).__name__, sort_keys=True))


def check_identity(saved: Any, current: Any, checkpoint: Path | None) -> None:
    """Raise, naming every difference, unless a checkpoint was made by the same model and configuration."""
    differences = list(_differences(saved, current, ""))
    if differences:
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        listed = "; ".join(differences[:5])
        raise CheckpointError(f"checkpoint {checkpoint} does not belong to this run: {listed}{more}")


def _differences(saved: Any, current: Any, path: str) -> Iterator[str]:
    if isinstance(saved, dict) and isinstance(current, dict):
        for key in sorted({*saved, *current}):
            inner = f"{path}.{key}" if path else key
            yield from _differences(saved.get(key, "absent"), current.get(key, "absent"), inner)
    elif saved != current:
        yield f"{path} was {saved!r}, is {current!r}"
