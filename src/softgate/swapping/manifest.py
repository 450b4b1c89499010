"""Keep a swapped model: ``softgate.json`` beside its safetensors, with names and JSON options only.

transformers stores neither the attention implementation nor what was swapped in; loading such a folder with its own
``from_pretrained`` gives the softmax model back, without a warning. :func:`from_pretrained` reads the manifest first.
"""

from __future__ import annotations

import functools
import json
import re
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

import softgate
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, bad_type
from softgate.lab.files import write_json
from softgate.swapping import transformers_models
from softgate.swapping.api import PLACES, added_tensors, describe, swap
from softgate.swapping.attention_interface import load_transformers
from softgate.swapping.undo import Undo

__all__ = ["from_pretrained", "save_pretrained"]

MANIFEST = "softgate.json"
_WEIGHTS = "model.safetensors"
_ADDED = "softgate.safetensors"
_FORMAT = 1
_LARGEST_MANIFEST = 1 << 20
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def save_pretrained(model: nn.Module, folder: str | Path, **options: Any) -> None:
    """Save a model with what is swapped into it: safetensors, and ``softgate.json`` beside them.

    Args:
        model: what :func:`softgate.swap` was called on.
        folder: created if needed.
        **options: passed on to ``save_pretrained`` of a transformers model.

    Raises:
        StateError: something that was swapped in has no name or options that are not JSON; nothing is written.

    Example:
        >>> import softgate, torch, tempfile
        >>> layer = softgate.swap(torch.nn.MultiheadAttention(8, 2), attention="gated")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     softgate.save_pretrained(layer, folder)
        ...     again = softgate.from_pretrained(folder, model=torch.nn.MultiheadAttention(8, 2))
        >>> again.softgate_gate.weight.shape
        torch.Size([8, 8])
    """
    if not isinstance(model, nn.Module):
        bad_type("model", model, "an nn.Module")
    described = describe(model)
    if transformers_models.is_transformers_model(model):
        type(model).save_pretrained(model, folder, **options)  # type: ignore[attr-defined]
        _write(model, Path(folder), described, options.get("state_dict"))
        return
    if options:
        raise ArgumentTypeError(f"{', '.join(options)}: further options are for models of transformers")
    from safetensors.torch import save_model

    Path(folder).mkdir(parents=True, exist_ok=True)
    save_model(model, str(Path(folder) / _WEIGHTS))
    _write(model, Path(folder), described)


def from_pretrained(folder: str | Path, *, model: nn.Module | None = None, **options: Any) -> Any:
    """Load a model that :func:`save_pretrained` (or a Trainer, from a swapped model) saved, with its swaps.

    Args:
        folder: a local folder with ``softgate.json``.
        model: for models that are not of transformers: the same model, freshly built and not swapped; its weights are
            overwritten.
        **options: passed on to ``from_pretrained`` of transformers (``dtype``, ``device_map``, …).

    Returns:
        The swapped model; in evaluation mode if it is one of transformers.

    Raises:
        ArgumentValueError: ``folder`` is no folder, or a method in the manifest is not known here.
        StateError: the manifest is missing, damaged or of another version, or the weights do not fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArgumentValueError(
            f"folder must be a local folder that softgate.save_pretrained wrote, got {str(folder)!r}; load any other "
            "model with its own library and call softgate.swap on it"
        )
    manifest = read_manifest(folder)
    _check_index(folder)
    if manifest["library"] == "transformers":
        if model is not None:
            raise ArgumentTypeError(f"{folder} holds a {manifest['class']}, which is built from its own configuration")
        return _load_transformers_model(folder, manifest, options)
    if model is None:
        raise ArgumentTypeError(f"{folder} holds weights of {manifest['class']}: pass model= with a freshly built one")
    if options:
        raise ArgumentTypeError(f"{', '.join(options)}: further options are for models of transformers")
    _apply(model, manifest)
    from safetensors.torch import load_model

    try:
        load_model(model, str(folder / _WEIGHTS))
    except (RuntimeError, SafetensorError) as error:
        raise StateError(f"the weights in {folder} do not fit this {type(model).__name__}: {error}") from error
    return model


def saves_its_manifest(model: Any, undo: Undo) -> None:
    """Let ``model.save_pretrained`` write the manifest too, so that a Trainer's checkpoints have it."""
    if "save_pretrained" not in vars(model):
        undo.set(model, "save_pretrained", functools.partial(_save_with_manifest, model))


def _save_with_manifest(model: Any, save_directory: str | Path, *args: Any, **options: Any) -> Any:
    result = type(model).save_pretrained(model, save_directory, *args, **options)
    try:
        described = describe(model)
    except StateError as error:  # a training must not die at its first checkpoint
        warnings.warn(f"no {MANIFEST} was written to {save_directory}: {error}", stacklevel=2)
        return result
    if options.get("is_main_process", True):
        _write(model, Path(save_directory), described, options.get("state_dict"))
    return result


def _write(model: nn.Module, folder: Path, described: dict[str, dict[str, Any]], state: Any = None) -> None:
    """Write the manifest, and for transformers the added tensors under their own names beside it.

    The main file has them too (a Trainer resumes from it), but transformers may rename what it saves.
    """
    library = "transformers" if transformers_models.is_transformers_model(model) else "torch"
    name = next(cls for cls in type(model).__mro__ if not cls.__module__.startswith("softgate.")).__name__
    added = added_tensors(model)
    if library == "transformers" and added:
        from safetensors.torch import save_file

        state = model.state_dict() if state is None else state
        save_file({key: state[key].detach().cpu().contiguous() for key in added}, folder / _ADDED)
    manifest = {"format": _FORMAT, "softgate": softgate.__version__, "library": library, "class": name}
    write_json(folder / MANIFEST, {**manifest, "swaps": described})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The checked content of ``softgate.json`` in ``folder``."""
    path = folder / MANIFEST
    if not path.is_file():
        raise StateError(
            f"{folder} has no {MANIFEST}: it was not saved from a swapped model; load it with its own "
            "library and call softgate.swap on it"
        )
    if path.stat().st_size > _LARGEST_MANIFEST:
        raise StateError(f"{path} is damaged: larger than any manifest")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise StateError(f"{path} is damaged: {error}") from error
    problem = _problem(manifest)
    if problem:
        raise StateError(f"{path} is damaged: {problem}")
    return manifest  # type: ignore[no-any-return]


def _problem(manifest: Any) -> str:
    """What is wrong with the content of a manifest, empty if nothing is."""
    if not isinstance(manifest, dict):
        return "not a JSON object"
    if manifest.get("format") != _FORMAT:
        return f"format {manifest.get('format')!r}, this version of softgate reads format {_FORMAT}"
    if manifest.get("library") not in ("transformers", "torch"):
        return f"library {manifest.get('library')!r}"
    if not isinstance(manifest.get("class"), str) or not _IDENTIFIER.fullmatch(manifest["class"]):
        return f"class {manifest.get('class')!r} is not a name"
    swaps = manifest.get("swaps")
    if not isinstance(swaps, dict) or set(swaps) - set(PLACES):
        return f"swaps must be an object with {', '.join(PLACES)}"
    for place, entry in swaps.items():
        if not isinstance(entry, dict) or set(entry) != {"name", "options"}:
            return f"swaps.{place} must have name and options"
        if not isinstance(entry["name"], str) or not isinstance(entry["options"], dict):
            return f"swaps.{place} must have a string as name and an object as options"
    return ""


def _apply(model: nn.Module, manifest: dict[str, Any]) -> None:
    names = {place: entry["name"] for place, entry in manifest["swaps"].items()}
    options = {f"{place}_options": entry["options"] for place, entry in manifest["swaps"].items()}
    if names:
        swap(model, **names, **options)


def _check_index(folder: Path) -> None:
    """Raise if the index of a model in several files names anything but safetensors files of this very folder."""
    index = folder / f"{_WEIGHTS}.index.json"
    if not index.is_file():
        return
    try:
        names = list(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise StateError(f"{index} is damaged: {error!r}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise StateError(f"{index} names {name!r}, which is no safetensors file of this folder: refused")


def _load_transformers_model(folder: Path, manifest: dict[str, Any], options: dict[str, Any]) -> Any:
    """Let transformers load what it knows, apply the swaps, then fill in what they added."""
    transformers = load_transformers()
    cls: Any = getattr(transformers, manifest["class"], None)
    base: type = transformers.PreTrainedModel
    if base not in getattr(cls, "__mro__", ()):
        raise StateError(f"{folder / MANIFEST} names {manifest['class']!r}, which is no model class of transformers")
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its report would call what swaps added "unexpected"
    try:
        model, report = cls.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, use_safetensors=True, **options
        )
    finally:
        transformers.logging.set_verbosity(verbosity)
    _apply(model, manifest)
    state, added = model.state_dict(), added_tensors(model)
    tails = {_tail(name) for name in added}
    stray = {name for name in report["unexpected_keys"] if _tail(name) not in tails}
    missing = set(report["missing_keys"]) & set(state)
    if missing or stray:
        raise StateError(
            f"the weights in {folder} do not fit {manifest['class']}: missing {sorted(missing)}, unknown "
            f"{sorted(stray)}"
        )
    if added:
        _fill(state, added, folder / _ADDED)
    return model.eval()


def _tail(name: str) -> str:
    """The last two parts of a tensor's name, which transformers leaves alone when it renames."""
    return ".".join(name.split(".")[-2:])


def _fill(state: dict[str, Tensor], names: list[str], path: Path) -> None:
    """Copy the named tensors from ``path`` into ``state``."""
    try:
        with safe_open(path, framework="pt") as stream:
            for name in names:
                state[name].copy_(stream.get_tensor(name))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise StateError(f"{path} does not hold what the swaps added ({', '.join(names)}): {error}") from error
