"""Learnt prompts on disk: a JSON file that says what they are, and their tensors in safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from softgate.errors import StateError

__all__: list[str] = []

SETTINGS, TENSORS = "prompt_mixture.json", "prompt_mixture.safetensors"
_FORMAT = 1


def write(folder: str | Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write both files into ``folder``, which is made if it is absent."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path / TENSORS)
    text = json.dumps({"format": _FORMAT, **settings}, indent=2, ensure_ascii=False)
    (path / SETTINGS).write_text(text + "\n", encoding="utf-8")


def read(folder: str | Path, names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings called ``names`` and the tensors in ``folder``."""
    path = Path(folder)
    for name in (SETTINGS, TENSORS):
        if not (path / name).is_file():
            raise StateError(f"{path} holds no saved prompts: there is no {name}")
    try:
        settings = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        tensors = load_file(path / TENSORS)
    except (SafetensorError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StateError(f"{path} holds damaged prompts: {error}") from error
    if not isinstance(settings, dict) or settings.pop("format", None) != _FORMAT or set(settings) != set(names):
        raise StateError(f"{path / SETTINGS} was not written by save_pretrained of this version")
    return settings, tensors
