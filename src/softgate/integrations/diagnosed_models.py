"""Loading what ``softgate diagnose`` is given: a model of transformers or timm from a local folder or the hub."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from softgate._checks import check_device
from softgate.errors import ArgumentValueError, MissingExtraError, SoftgateError, StateError
from softgate.integrations import torchvision_cpu
from softgate.integrations.hub import hub_or_cache
from softgate.swapping.attention_interface import load_transformers
from softgate.swapping.manifest import MANIFEST, from_pretrained

__all__ = ["DiagnosedModel", "load_model"]

_CONFIG = "config.json"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


@dataclass
class DiagnosedModel:
    """A model with what is needed to make inputs for it.

    Attributes:
        model: in evaluation mode.
        source: the folder or hub id it came from.
        library: ``"transformers"`` or ``"timm"``.
        tokenizer: None for images, or where there is none.
        notes: what the reader of a report should know.
    """

    model: Any
    source: str
    library: str
    tokenizer: Any = None
    notes: list[str] = field(default_factory=list)


def load_model(source: str, *, device: str = "cpu") -> DiagnosedModel:
    """Load ``source``.

    Args:
        source: a local folder (as ``save_pretrained`` of transformers, ``softgate.save_pretrained`` or timm's
            ``save_for_hf`` write it), a hub id (``owner/name``; timm's begin with ``timm/``), or the name of a timm
            model. A local folder is read without any network.
        device: where the model is put.

    Raises:
        ArgumentValueError: no such folder, or a folder without a model.
        MissingExtraError: transformers or timm is not installed.
        StateError: the weights cannot be loaded, or there is no such device.
    """
    check_device(device)
    folder = Path(source)
    if source and folder.is_dir():
        loaded = _from_folder(folder)
    elif source and folder.exists():
        raise ArgumentValueError(f"{source} is a file: give the folder that holds {_CONFIG} and the weights")
    elif _looks_like_a_path(source):
        raise ArgumentValueError(f"{source!r} does not exist: give a folder with {_CONFIG} and weights, or a hub id")
    elif source.startswith("timm/") or ("/" not in source and _is_timm_name(source)):
        loaded = _from_timm(source, f"hf-hub:{source}" if "/" in source else source)
    else:
        loaded = _from_transformers(source, local=False)
    loaded.model = loaded.model.eval().to(device)
    return loaded


def _looks_like_a_path(source: str) -> bool:
    return not source or source.startswith((".", "/", "~")) or source.endswith("/") or source.count("/") > 1


def _from_folder(folder: Path) -> DiagnosedModel:
    path = folder / _CONFIG
    if not path.is_file():
        raise ArgumentValueError(
            f"{folder} is no model folder: it has no {_CONFIG}; give the folder that save_pretrained wrote"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StateError(f"{path} is damaged ({error}): save or download it again") from error
    if isinstance(config, dict) and "architecture" in config and "model_type" not in config:
        return _from_timm(str(folder), f"local-dir:{folder}")
    if not isinstance(config, dict) or "model_type" not in config:
        raise ArgumentValueError(
            f"{path} names neither a model_type (transformers) nor an architecture (timm): not a model that can be "
            "loaded by itself; call softgate.diagnostics.report(model, batches) in Python"
        )
    return _from_transformers(str(folder), local=True)


def _from_transformers(source: str, *, local: bool) -> DiagnosedModel:
    hf = load_transformers()
    hf.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    with nullcontext("") if local else hub_or_cache(source) as advice, _said(source, local, advice):
        config = hf.AutoConfig.from_pretrained(source, local_files_only=local)
        notes: list[str] = []
        if local and (Path(source) / MANIFEST).is_file():
            model = from_pretrained(source)
        else:
            model, notes = _pretrained(hf, source, config, local)
        tokenizer = _tokenizer(hf, source, local) if model.main_input_name == "input_ids" else None
    return DiagnosedModel(model, source, "transformers", tokenizer, notes)


@contextmanager
def _said(source: str, local: bool, advice: str) -> Iterator[None]:
    """Turn whatever loading raises into one sentence: damaged files raise what the readers of a dozen formats raise."""
    try:
        yield
    except SoftgateError:
        raise
    except Exception as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        if local:
            raise StateError(
                f"the model in {source} cannot be loaded: {text}; save it again with save_pretrained (safetensors), or "
                "load it in Python and call softgate.diagnostics.report(model, batches)"
            ) from error
        if advice and isinstance(error, OSError | RuntimeError):  # not found; a damaged copy raises something else
            text = advice
        raise StateError(
            f"{source} is no folder here, and as a hub id it cannot be loaded: {text}{_without_timm(source)}"
        ) from error


def _without_timm(source: str) -> str:
    """What to add if ``source`` may be the name of a timm model, which nobody can tell without timm."""
    if "/" in source or importlib.util.find_spec("timm") is not None:
        return ""
    return "; if it is a model of timm: pip install 'softgate[vision]'"


def _pretrained(hf: Any, source: str, config: Any, local: bool) -> tuple[Any, list[str]]:
    """The model as the class that its configuration names, and a note if the weights do not fill it."""
    named = (getattr(config, "architectures", None) or [""])[0]
    cls = getattr(hf, named, None) or hf.AutoModel
    model, info = cls.from_pretrained(
        source, config=config, dtype="auto", local_files_only=local, output_loading_info=True
    )
    missing = sorted(info["missing_keys"])
    if not missing:
        return model, []
    return model, [f"{len(missing)} tensors are not in the saved weights and are random, the first is {missing[0]}"]


def _tokenizer(hf: Any, source: str, local: bool) -> Any:
    if local and not any((Path(source) / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        return hf.AutoTokenizer.from_pretrained(source, local_files_only=local)
    except (OSError, ValueError, KeyError, ImportError):
        return None


def _timm() -> Any:
    torchvision_cpu.repair()
    return importlib.import_module("timm")


def _is_timm_name(source: str) -> bool:
    try:
        return bool(_timm().is_model(source.split(".")[0]))
    except ImportError:
        return False


def _from_timm(source: str, name: str) -> DiagnosedModel:
    try:
        timm = _timm()
    except ImportError as error:
        raise MissingExtraError("timm", "vision", f"loading {source}") from error
    local = name.startswith("local-dir:")
    hub = nullcontext("") if local else hub_or_cache(_timm_repository(timm, source))
    with hub as advice, _said(source, local, advice):
        model: nn.Module = timm.create_model(name, pretrained=True)
    return DiagnosedModel(model, source, "timm")


def _timm_repository(timm: Any, source: str) -> str:
    """The hub's name for the weights of a timm model."""
    if "/" in source:
        return source
    weights = timm.models.get_pretrained_cfg(source)
    return getattr(weights, "hf_hub_id", None) or source
