"""Randomness that can be derived, saved and put back: every generator of a run comes from its seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive(seed: int, *stream: int | str) -> int:
    """A 63-bit seed for one purpose: equal arguments give equal seeds, different ones unrelated seeds.

    ``derive(seed, "data", step)`` makes a batch a pure function of the step, which is what lets a run resume without
    replaying its data.
    """
    digest = hashlib.sha256(repr((seed, *stream)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *stream: int | str, device: str = "cpu") -> torch.Generator:
    """A torch generator seeded by :func:`derive`."""
    return torch.Generator(device).manual_seed(derive(seed, *stream))


def seed_everything(seed: int) -> None:
    """Seed the global generators of python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """State of all global generators: python, numpy, torch and, once CUDA is in use, every CUDA device."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_rng_state(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` returned; CUDA devices that are absent now are skipped."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        for index, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state, index)


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Run a block on its own seed; the global generators are afterwards as they were before."""
    before = rng_state()
    seed_everything(seed)
    try:
        yield
    finally:
        restore_rng_state(before)
