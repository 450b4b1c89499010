"""softgate: softmax and gating, everywhere they stand in a deep network.

Use a method (``softgate.attention.gated_attention``), ask which implementation runs (``softgate.explain``), check an
op of your own (``softgate.testing.check_op``), or reproduce a paper (``softgate reproduce gated-attention``).
Everything below is imported on first use; ``import softgate`` itself does not import torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softgate.dispatch import explain as explain
    from softgate.registry import methods as methods

__version__ = "0.1.0"

_FUNCTIONS = {"explain": "softgate.dispatch", "methods": "softgate.registry"}
_MODULES = frozenset(
    path.stem
    for path in Path(__file__).parent.iterdir()
    if not path.name.startswith("_") and (path.suffix == ".py" or (path / "__init__.py").is_file())
)

__all__ = ["__version__", "explain", "methods"]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"softgate.{name}")
    raise AttributeError(f"module 'softgate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FUNCTIONS, *_MODULES})
