"""softgate: softmax and gating, everywhere they stand in a deep network.

Use a method (``softgate.attention.gated_attention``), put it into an existing model (``softgate.swap``), ask which
implementation runs (``softgate.explain``), check an op of your own (``softgate.testing.check_op``), or reproduce a
paper (``softgate reproduce gated-attention``).
Everything below is imported on first use; ``import softgate`` itself does not import torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softgate.dispatch import explain as explain
    from softgate.registry import methods as methods
    from softgate.swapping.api import swap as swap
    from softgate.swapping.api import unswap as unswap
    from softgate.swapping.manifest import from_pretrained as from_pretrained
    from softgate.swapping.manifest import save_pretrained as save_pretrained

__version__ = "0.1.0"

_FUNCTIONS = {
    "explain": "softgate.dispatch",
    "from_pretrained": "softgate.swapping.manifest",
    "methods": "softgate.registry",
    "save_pretrained": "softgate.swapping.manifest",
    "swap": "softgate.swapping.api",
    "unswap": "softgate.swapping.api",
}
_MODULES = frozenset(
    path.stem
    for path in Path(__file__).parent.iterdir()
    if not path.name.startswith("_") and (path.suffix == ".py" or (path / "__init__.py").is_file())
)

__all__ = ["__version__", "explain", "from_pretrained", "methods", "save_pretrained", "swap", "unswap"]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"softgate.{name}")
    from softgate.errors import did_you_mean

    known = sorted({*_FUNCTIONS, *_MODULES})
    hint = did_you_mean(name, known) or f"; it offers {', '.join(known)}"
    raise AttributeError(f"module 'softgate' has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FUNCTIONS, *_MODULES})
