"""Adapters on disk: ``iapt.json`` with their configurations, and one safetensors file each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.models.iapt.adapter import PromptAdapter
from softgate.models.iapt.config import IAPTConfig

__all__ = ["Saved", "SavedAdapter", "read", "write"]

MANIFEST = "iapt.json"
_FORMAT = 1
_LARGEST_MANIFEST = 1 << 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class SavedAdapter:
    """One adapter as it lies on disk."""

    config: IAPTConfig
    path: Path

    def fill(self, adapter: nn.Module) -> None:
        """Copy the saved tensors into ``adapter``; each must be there, with its shape."""
        own = dict(adapter.named_parameters())
        try:
            saved = load_file(self.path)
        except (OSError, SafetensorError) as error:
            raise StateError(f"{self.path} cannot be read: {error}") from error
        wrong = sorted(set(own) ^ set(saved)) or [key for key in own if own[key].shape != saved[key].shape]
        if wrong:
            raise StateError(f"{self.path} does not fit its configuration: {', '.join(wrong)}")
        with torch.no_grad():
            for key, parameter in own.items():
                parameter.copy_(saved[key])


@dataclass(frozen=True)
class Saved:
    """What a folder holds."""

    folder: Path
    shape: Mapping[str, int]
    adapters: Mapping[str, SavedAdapter]

    def check(self, shape: Mapping[str, int]) -> None:
        """Raise unless the adapters were made for a model of this shape."""
        if dict(self.shape) != dict(shape):
            raise StateError(f"{self.folder} holds prompts for a model with {self.shape}, this one has {shape}")


def write(folder: Path, adapters: Mapping[str, PromptAdapter], shape: Mapping[str, int]) -> None:
    """Write ``adapters`` into ``folder``; the manifest comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, adapter in adapters.items():
        tensors = {key: value.detach().cpu().contiguous() for key, value in adapter.named_parameters()}
        save_file(tensors, _file(folder, name))
    manifest: dict[str, Any] = {"format": _FORMAT, "model": dict(shape)}
    manifest["adapters"] = {name: adapter.config.as_json() for name, adapter in adapters.items()}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read(folder: Path, names: Sequence[str] | None) -> Saved:
    """The manifest of ``folder``, with the adapters called ``names`` (all if None)."""
    path = folder / MANIFEST
    if not path.is_file():
        raise StateError(f"{folder} has no {MANIFEST}: no prompts were saved there")
    if path.stat().st_size > _LARGEST_MANIFEST:
        raise StateError(f"{path} is damaged: larger than any manifest")
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] != _FORMAT:
            raise StateError(f"{path} has format {manifest['format']!r}, this softgate reads {_FORMAT}")
        shape, found = dict(manifest["model"]), dict(manifest["adapters"])
        if not found or not all(_NAME.fullmatch(name) for name in found):
            raise ValueError(f"adapters {sorted(found)}")
        configs = {name: IAPTConfig.from_json(values) for name, values in found.items()}
    except (ValueError, KeyError, TypeError, ArgumentTypeError, ArgumentValueError) as error:
        raise StateError(f"{path} is damaged: {error}") from error
    unknown = sorted(set(names or ()) - set(configs))
    if unknown or (names is not None and not names):
        raise ArgumentValueError(f"adapters must be among {sorted(configs)}, got {list(names or ())}")
    chosen = configs if names is None else {name: configs[name] for name in names}
    return Saved(folder, shape, {name: SavedAdapter(config, _file(folder, name)) for name, config in chosen.items()})


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"
