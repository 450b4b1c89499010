"""The C++ kernels of softgate: whether they are there, and what they run on.

``SOFTGATE_ISA`` (``avx512``, ``avx2`` or ``scalar``) forces an instruction set when this module is first imported.
Importing it does not import torch. Without the compiled extension everything runs on the torch references.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from softgate.errors import StateError, check_choice

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    from softgate import _native as _kernels
except ImportError as error:  # a pure Python installation, or a library this system cannot load
    _kernels = None
    # without the path that Python adds: records of measurements quote this
    _reason = f"the extension softgate._native is not usable: {str(error).split(' (')[0]}"
else:
    _reason = ""
    # an editable installation whose sources have moved on
    if any(not hasattr(_kernels, name) for name in ("has_matmul", "crrelu", "soft_nms", "some_filters", "lif")):
        _kernels, _reason = None, "the extension softgate._native is older than this source; install softgate again"

__all__ = ["ALGORITHMS", "ISAS", "available", "info", "kernels", "set_isa", "unavailable_reason", "use_isa"]

ENVIRONMENT_VARIABLE = "SOFTGATE_ISA"

#: Instruction sets, widest first.
ISAS = ("avx512", "avx2", "scalar")

#: Algorithms of the kernels -> their number there; ``auto`` takes the fastest for the length of the rows.
ALGORITHMS = {"auto": -1, "two_pass": 0, "three_pass_recompute": 1, "three_pass_reload": 2, "online": 3}


def available() -> bool:
    """Whether the compiled kernels can be used."""
    return _kernels is not None


def unavailable_reason() -> str:
    """Why the kernels cannot be used; empty if they can."""
    return _reason


def kernels() -> Any:
    """The extension module.

    Raises:
        StateError: there is none.
    """
    if _kernels is None:
        raise StateError(f"native kernels are needed here, but {_reason}")
    return _kernels


def info() -> dict[str, Any]:
    """What the kernels run on.

    Returns:
        ``available``; ``reason`` (why not, else empty); ``isa`` in use and ``best_isa`` of this machine (None without
        kernels); ``threads`` this process may use; ``l2`` and ``l3`` in bytes (None without kernels);
        ``isas``, those that can be forced; ``forced``, the value of ``SOFTGATE_ISA``.
    """
    forced = os.environ.get(ENVIRONMENT_VARIABLE, "").strip() or None
    if _kernels is None:
        nothing = dict.fromkeys(("isa", "best_isa", "l2", "l3"))
        return {
            "available": False,
            "reason": _reason,
            **nothing,
            "threads": os.cpu_count(),
            "isas": (),
            "forced": forced,
        }
    best = _kernels.best_isa()
    return {
        "available": True,
        "reason": "",
        "isa": _kernels.isa(),
        "best_isa": best,
        "l2": _kernels.l2(),
        "l3": _kernels.llc(),
        "threads": _kernels.hardware_threads(),
        "isas": ISAS[ISAS.index(best) :],
        "forced": forced,
    }


def set_isa(isa: str) -> None:
    """Use another instruction set from now on, in the whole process; meant for tests and measurements.

    Raises:
        ValueError: ``isa`` is not one of :data:`ISAS`.
        StateError: this machine or build cannot run it.
    """
    check_choice("isa", isa, ISAS)
    if not kernels().set_isa(isa):
        raise StateError(f"isa {isa!r} cannot run here; available: {', '.join(info()['isas'])}")


@contextmanager
def use_isa(isa: str) -> Iterator[None]:
    """Use another instruction set inside a ``with`` block."""
    before = kernels().isa()
    set_isa(isa)
    try:
        yield
    finally:
        set_isa(before)


def _obey_environment() -> None:
    forced = os.environ.get(ENVIRONMENT_VARIABLE, "").strip()
    if forced and _kernels is not None:
        if forced not in ISAS:
            raise StateError(f"{ENVIRONMENT_VARIABLE} must be one of {', '.join(ISAS)}, got {forced!r}")
        set_isa(forced)


_obey_environment()
