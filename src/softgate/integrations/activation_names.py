"""Make the activations of this library known by name to timm and transformers."""

from __future__ import annotations

import importlib
import importlib.util

from torch import nn

from softgate.activations import CRReLU
from softgate.errors import MissingExtraError

__all__ = ["register_activations"]

_NAMED: dict[str, type[nn.Module]] = {"crrelu": CRReLU}


def register_activations() -> list[str]:
    """Let ``hidden_act="crrelu"`` in a transformers config, and ``act_layer="crrelu"`` in timm, mean CRReLU.

    For models that are built from now on in this process; call it again in every process that loads them.

    Returns:
        The libraries that were found: ``"timm"``, ``"transformers"``.

    Raises:
        MissingExtraError: neither is installed.

    Example:
        >>> import pytest; _ = pytest.importorskip("transformers")
        >>> "transformers" in register_activations()
        True
    """
    from softgate.integrations import torchvision_cpu

    torchvision_cpu.repair()  # both libraries import it
    found = []
    for library, module, table in (
        ("timm", "timm.layers.create_act", "_ACT_LAYER_DEFAULT"),
        ("transformers", "transformers.activations", "ACT2FN"),
    ):
        if importlib.util.find_spec(library) is None:
            continue
        names = getattr(importlib.import_module(module), table)
        for name, cls in _NAMED.items():
            names[name] = cls
        found.append(library)
    if not found:
        raise MissingExtraError("transformers", "hf", "naming an activation in its configs")
    return found
