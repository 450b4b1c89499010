"""A CLIP of transformers with its tokenizer, from a folder or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softgate.errors import ArgumentValueError, MissingExtraError, StateError, bad_type
from softgate.integrations import torchvision_cpu

__all__ = ["load_clip"]


def load_clip(source: str | Path, **options: Any) -> tuple[Any, Any]:
    """Load a CLIP for :class:`softgate.routing.PromptMixture`.

    Args:
        source: folder that ``save_pretrained`` wrote, or a name on the hub such as ``"openai/clip-vit-base-patch16"``.
        **options: of ``CLIPModel.from_pretrained``, such as ``dtype``.

    Returns:
        The ``CLIPModel``, in evaluation mode, and its tokenizer.

    Raises:
        MissingExtraError: transformers is not installed.
        ArgumentValueError: ``source`` holds another kind of model (SigLIP, say).
        StateError: there is nothing at ``source``, or the hub cannot be reached.

    Example:
        >>> clip, tokenizer = load_clip("openai/clip-vit-base-patch16")  # doctest: +SKIP

    Paper: none; for arXiv 2409.12011, which learns prompts for CLIP ViT-B/16.
    """
    if not isinstance(source, str | Path):
        bad_type("source", source, "a folder or a name on the hub")
    torchvision_cpu.repair()
    try:
        from transformers import AutoConfig, AutoTokenizer, CLIPModel
    except ImportError as error:
        raise MissingExtraError("transformers", "hf", "loading a CLIP") from error
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type != "clip":
            raise ArgumentValueError(f"source must hold a CLIP, {source} holds a model of type {config.model_type!r}")
        return CLIPModel.from_pretrained(source, **options).eval(), AutoTokenizer.from_pretrained(source)
    except ArgumentValueError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StateError(
            f"no CLIP could be loaded from {str(source)!r}: {reason} Without the hub, pass a folder with config.json, "
            "model.safetensors and the tokenizer's files."
        ) from error
