"""Checkpoints that survive a kill at any moment and never load damaged data.

A generation is a folder of safetensors and JSON, complete or absent::

    000007/model.safetensors      the model's tensors, loadable by any safetensors reader
    000007/trainer.safetensors    every other tensor: optimizer, generators, history
    000007/state.json             the structure around the tensors, and all numbers and strings
    000007/SHA256SUMS             ``sha256sum -c SHA256SUMS`` checks the three files above

It is written under a temporary name, synced, and renamed; the two newest good generations are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from softgate.errors import StateError
from softgate.lab.files import sync_folder

MODEL, TRAINER, STATE, SUMS = "model.safetensors", "trainer.safetensors", "state.json", "SHA256SUMS"
_FILES = (MODEL, TRAINER, STATE)
_TEMPORARY = ".writing"
_VERSION = 1


class CheckpointError(StateError):
    """A checkpoint cannot be written, is damaged, or belongs to another model or configuration."""


class DamagedCheckpointWarning(UserWarning):
    """A generation is damaged and the one before it is used."""


def pack(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """Split ``value`` into JSON and tensors.

    Dicts (any scalar keys), lists, tuples, numbers (NaN and infinities too), strings, None, tensors and numpy arrays
    come back from :func:`unpack` as they were. Tensors that are the same memory (tied weights) are stored once.

    Args:
        value: what to save.
        tensors: receives the tensors, copied to the CPU, by name.
        path: name of ``value`` inside the checkpoint, the prefix of tensor names and of error messages.

    Returns:
        A JSON value with ``{"$tensor": name}`` in place of tensors.

    Raises:
        CheckpointError: something is neither of these, with its path.
    """
    return _Packer(tensors).pack(value, path)


class _Packer:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        # holds the tensors too: the address of one that was freed may return as another's
        self.seen: dict[tuple[Any, ...], tuple[str, Tensor]] = {}

    def pack(self, value: Any, path: str) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if isinstance(value, float):
            return float(value) if value - value == 0.0 else {"$float": repr(float(value))}
        if isinstance(value, Tensor):
            return {"$tensor": self.store(value, path)}
        if isinstance(value, np.ndarray):
            return {"$numpy": self.store(torch.from_numpy(value.copy()), path)}
        if isinstance(value, np.generic):
            return self.pack(value.item(), path)
        if isinstance(value, list | tuple):
            items = [self.pack(item, f"{path}.{index}") for index, item in enumerate(value)]
            return items if isinstance(value, list) else {"$tuple": items}
        if isinstance(value, Mapping):
            if all(type(key) is str and not key.startswith("$") for key in value):
                return {key: self.pack(item, f"{path}.{key}") for key, item in value.items()}
            pairs = [[self.pack(key, path), self.pack(item, f"{path}.{key}")] for key, item in value.items()]
            return {"$items": pairs}
        kinds = "tensors, numbers, strings, None, lists, tuples and dicts"
        raise CheckpointError(f"cannot save {path}: it is a {type(value).__name__}; a checkpoint holds {kinds}")

    def store(self, tensor: Tensor, path: str) -> str:
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = f"{tensor.layout} on {tensor.device}"
            raise CheckpointError(f"cannot save {path}: only dense tensors with data can be saved, got {kind}")
        memory = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
        if tensor.numel() and memory in self.seen:
            return self.seen[memory][0]
        name = path
        while name in self.tensors:  # {"a.b": t, "a": {"b": u}}
            name += "'"
        self.tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
        self.seen[memory] = name, tensor
        return name


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverse of :func:`pack`; every tensor is a fresh copy, aligned as torch's allocator aligns."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (key, inner), *_ = value.items()
        special = _SPECIAL.get(key)
        if special is not None:
            return special(inner, tensors)
    return {key: unpack(item, tensors) for key, item in value.items()}


_SPECIAL: dict[str, Callable[[Any, Mapping[str, Tensor]], Any]] = {
    "$float": lambda inner, _: float(inner),
    "$tensor": lambda inner, tensors: tensors[inner].clone(),
    "$numpy": lambda inner, tensors: tensors[inner].clone().numpy(),
    "$tuple": lambda inner, tensors: tuple(unpack(item, tensors) for item in inner),
    "$items": lambda inner, tensors: {unpack(key, tensors): unpack(item, tensors) for key, item in inner},
}


def to_bytes(value: Any) -> bytes:
    """``value`` as one byte string, for sending it to another process."""
    tensors: dict[str, Tensor] = {}
    head = json.dumps(pack(value, tensors, "value"), allow_nan=False).encode()
    return len(head).to_bytes(8, "little") + head + save(tensors)


def from_bytes(data: bytes) -> Any:
    """Inverse of :func:`to_bytes`."""
    end = 8 + int.from_bytes(data[:8], "little")
    return unpack(json.loads(data[8:end]), load(data[end:]))


class Checkpoints:
    """The generations in one folder, written and read by one process at a time.

    Args:
        folder: where the generations live; created on the first save.
        keep: how many good generations to keep.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep
        self._good: list[Path] = []

    def save(self, state: Mapping[str, Any]) -> Path:
        """Write ``state`` as a new generation and drop the oldest; ``state["model"]`` becomes ``model.safetensors``.

        Raises:
            CheckpointError: the folder is full, read-only or gone, or ``state`` holds something that cannot be saved.
                The generations written before are intact.
        """
        number = max((int(path.name) for path in self.generations()), default=0) + 1
        temporary, final = self.folder / _TEMPORARY, self.folder / f"{number:06d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            _write_generation(temporary, state)
            os.rename(temporary, final)
            sync_folder(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            kept = f"; {self._good[-1]} is intact" if self._good else ""
            raise CheckpointError(f"cannot write checkpoint {final}: {error}{kept}") from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._good = [*self._good, final][-self.keep :]
        for path in self.generations():
            if path not in self._good:
                shutil.rmtree(path, ignore_errors=True)
        return final

    def load(self, generation: Path | None = None) -> dict[str, Any] | None:
        """State of the newest good generation (or of the one given); None if nothing was ever written here.

        Raises:
            CheckpointError: every generation is damaged; the message names each file and what is wrong with it.
        """
        damages = []
        for path in [generation] if generation else reversed(self.generations()):
            try:
                state = _read_generation(path)
            except CheckpointError as error:
                damages.append(str(error))
                continue
            if damages:
                warnings.warn(f"{'; '.join(damages)}; continuing from {path}", DamagedCheckpointWarning, stacklevel=2)
            self._good = [path]
            return state
        if damages:
            raise CheckpointError(f"no usable checkpoint: {'; '.join(damages)}; to start afresh, delete {self.folder}")
        return None

    @property
    def newest(self) -> Path | None:
        """The generation last saved or loaded by this object."""
        return self._good[-1] if self._good else None

    def generations(self) -> list[Path]:
        """Complete generations, oldest first; they may still be damaged."""
        if not self.folder.is_dir():
            return []
        found = (path for path in self.folder.iterdir() if path.name.isdecimal())
        return sorted(found, key=lambda path: int(path.name))

    def clear(self) -> None:
        """Remove all generations: a run that starts afresh must not be resumed from an older one."""
        try:
            for path in [*reversed(self.generations()), self.folder / _TEMPORARY]:
                with suppress(FileNotFoundError):
                    shutil.rmtree(path)
        except OSError as error:
            raise CheckpointError(f"cannot remove the old checkpoints in {self.folder}: {error}") from error
        self._good = []


def _write_generation(folder: Path, state: Mapping[str, Any]) -> None:
    model: dict[str, Tensor] = {}
    trainer: dict[str, Tensor] = {}
    packer, model_packer = _Packer(trainer), _Packer(model)
    body = {key: packer.pack(value, key) for key, value in state.items() if key != "model"}
    body["model"] = {key: model_packer.pack(value, key) for key, value in state.get("model", {}).items()}
    save_file(model, folder / MODEL)
    save_file(trainer, folder / TRAINER)
    (folder / STATE).write_text(json.dumps({"version": _VERSION, "state": body}, allow_nan=False), encoding="utf-8")
    (folder / SUMS).write_text(_sums(folder), encoding="utf-8")
    for name in (*_FILES, SUMS):
        with open(folder / name, "rb") as stream:
            os.fsync(stream.fileno())
    sync_folder(folder)


def _read_generation(folder: Path) -> dict[str, Any]:
    for name in (*_FILES, SUMS):
        if not (folder / name).is_file():
            raise CheckpointError(f"checkpoint file {folder / name} is missing")
    try:
        expected, actual = (folder / SUMS).read_bytes(), _sums(folder)
        if expected != actual.encode():
            lines = zip(_FILES, actual.splitlines(), strict=True)
            wrong = [name for name, line in lines if line.encode() not in expected.splitlines()]
            names = ", ".join(str(folder / name) for name in wrong or [SUMS])
            raise CheckpointError(f"checkpoint file {names} is damaged (its SHA-256 does not match {SUMS})")
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            raise CheckpointError(f"{folder / STATE} has format {content['version']}, this softgate reads {_VERSION}")
        body, trainer, model = content["state"], load_file(folder / TRAINER), load_file(folder / MODEL)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error}") from error
    state: dict[str, Any] = {key: unpack(value, trainer) for key, value in body.items() if key != "model"}
    state["model"] = unpack(body["model"], model)
    return state


def _sums(folder: Path) -> str:
    lines = []
    for name in _FILES:
        with open(folder / name, "rb") as stream:
            lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)
