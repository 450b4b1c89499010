"""The two encoders of a CLIP of transformers, as prompt learning needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from softgate.errors import ArgumentTypeError

__all__: list[str] = []

_PIECES = ("text_model", "text_projection", "visual_projection", "get_image_features", "logit_scale")


def check_clip(clip: Any) -> None:
    """Raise unless ``clip`` has the pieces of a ``transformers.CLIPModel``."""
    missing = [name for name in _PIECES if not hasattr(clip, name)]
    if missing or not isinstance(clip, nn.Module):
        raise ArgumentTypeError(
            f"clip must be a transformers.CLIPModel, got {type(clip).__name__}"
            + (f" without {', '.join(missing)} (SigLIP and its like are not supported)" if missing else "")
        )
    check_text_model(clip, "clip")


def check_text_model(text_model: Any, name: str = "text_model") -> None:
    """Raise unless ``text_model`` has CLIP's text transformer and projection."""
    embeddings = getattr(getattr(text_model, "text_model", None), "embeddings", None)
    if not hasattr(embeddings, "token_embedding") or not hasattr(text_model, "text_projection"):
        raise ArgumentTypeError(
            f"{name} must be a CLIPModel or CLIPTextModelWithProjection of transformers, "
            f"got {type(text_model).__name__}"
        )


def encode_text(text_model: Any, ids: Tensor, embeddings: Tensor | None = None) -> Tensor:
    """Features (S, D) of sequences ``ids`` (S, L), not normalised; ``embeddings`` (S, L, W) stand for their tokens."""
    encoder = text_model.text_model
    with _token_embeddings(encoder.embeddings, embeddings):
        pooled = encoder(input_ids=ids, return_dict=True).pooler_output
    return text_model.text_projection(pooled)


@contextmanager
def _token_embeddings(module: nn.Module, embeddings: Tensor | None) -> Iterator[None]:
    """Inside, ``module`` adds positions to ``embeddings`` instead of looking tokens up."""
    if embeddings is None:
        yield
        return

    def use(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "inputs_embeds": embeddings}

    handle = module.register_forward_pre_hook(use, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def encode_images(clip: Any, pixel_values: Tensor) -> Tensor:
    """Features (B, D) of images, not normalised."""
    if not len(pixel_values):  # CLIP's attention cannot shape a batch of none
        weight: Tensor = clip.visual_projection.weight
        return weight.new_empty(0, len(weight))
    found = clip.get_image_features(pixel_values=pixel_values)
    return found if isinstance(found, Tensor) else found.pooler_output  # a tensor before transformers 5


def block_norms(clip: Any) -> dict[str, nn.LayerNorm]:
    """The two layer norms of every block of a vision transformer, by name; none for other image encoders."""
    return {
        name: module
        for name, module in clip.named_modules()
        if name.startswith("vision_model.")
        and name.rpartition(".")[2] in ("layer_norm1", "layer_norm2")
        and isinstance(module, nn.LayerNorm)
    }
