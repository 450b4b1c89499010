"""``softgate diagnose``: load a model, look into it, and try the remedies that are suggested on that very model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from softgate.diagnostics import Report, report
from softgate.errors import SoftgateError
from softgate.integrations.diagnosed_inputs import make_batches
from softgate.integrations.diagnosed_models import load_model
from softgate.swapping.api import swap, unswap

__all__ = ["diagnose", "try_remedies"]


def diagnose(
    source: str,
    *,
    text: Path | None = None,
    images: Path | None = None,
    length: int = 256,
    batch: int = 4,
    batches: int = 4,
    device: str = "cpu",
) -> Report:
    """Look into the model ``source``, as the command ``softgate diagnose`` does.

    Args:
        source: local folder or hub id of a transformers or timm model.
        text: file for models of tokens; random tokens without it.
        images: folder for models of images; noise without it.
        length: tokens per row.
        batch: rows per batch.
        batches: how many.
        device: where the model runs.

    Returns:
        The report; its notes say what was made up, its topics whether the suggested swaps work on this model.

    Raises:
        ArgumentValueError: an argument that is not usable.
        StateError: the model cannot be loaded or fed.
        MissingExtraError: transformers, timm or pillow is needed and absent.
    """
    loaded = load_model(source, device=device)
    made = make_batches(loaded, text=text, images=images, length=length, batch=batch, batches=batches)
    found = try_remedies(loaded.model, report(loaded.model, made))
    return replace(found, notes=[*loaded.notes, *found.notes])


def try_remedies(model: Any, found: Report) -> Report:
    """``found`` with the reason at each topic whose suggested swap the model refuses; the model stays as it was."""
    topics = dict(found.topics)
    tried: dict[str, str] = {}
    for name in dict.fromkeys(finding.topic for finding in found.findings):
        topic = topics[name]
        if not topic.swap:
            continue
        if topic.line not in tried:
            tried[topic.line] = _refusal(model, topic.swap)
        topics[name] = replace(topic, refused=tried[topic.line])
    return replace(found, topics=topics)


def _refusal(model: Any, arguments: dict[str, Any]) -> str:
    try:
        swap(model, **arguments)
    except SoftgateError as error:
        return str(error)
    unswap(model)
    return ""
