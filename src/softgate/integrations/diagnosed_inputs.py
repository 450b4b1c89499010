"""Inputs for a model that is to be looked at: a text or random tokens, a folder of images or noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softgate.errors import ArgumentValueError, MissingExtraError, StateError
from softgate.integrations.diagnosed_models import DiagnosedModel

__all__ = ["make_batches"]

#: Text is read up to so many characters per token that is needed.
_CHARACTERS = 16
_FEWEST_TOKENS = 8
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm")


def make_batches(
    loaded: DiagnosedModel,
    *,
    text: Path | None = None,
    images: Path | None = None,
    length: int = 256,
    batch: int = 4,
    batches: int = 4,
    seed: int = 0,
) -> list[dict[str, Tensor] | Tensor]:
    """Batches for ``loaded.model``; what was made up is added to ``loaded.notes``.

    Args:
        loaded: the model.
        text: file that the model's tokenizer cuts into rows; without it or without a tokenizer tokens are random.
        images: folder of images; without it pixels are noise.
        length: tokens per row, at most what the model takes.
        batch: rows per batch.
        batches: how many; a short text gives fewer.
        seed: of what is random.

    Raises:
        ArgumentValueError: the file or folder does not exist or holds nothing usable, or does not fit the model.
        StateError: the model takes neither tokens nor images.
    """
    takes = "pixel_values" if loaded.library == "timm" else loaded.model.main_input_name
    device = next(loaded.model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    if takes == "input_ids":
        if images is not None:
            raise ArgumentValueError(f"--images is for models of images, {loaded.source} takes tokens: use --text")
        return _token_batches(loaded, text, length, batch, batches, generator, device)
    if takes != "pixel_values":
        raise StateError(
            f"{type(loaded.model).__name__} takes {takes}, neither tokens nor images: call "
            "softgate.diagnostics.report(model, batches) in Python"
        )
    if text is not None:
        raise ArgumentValueError(f"--text is for models of tokens, {loaded.source} takes images: use --images")
    return _image_batches(loaded, images, batch, batches, generator, device)


def _token_batches(
    loaded: DiagnosedModel,
    text: Path | None,
    length: int,
    batch: int,
    batches: int,
    generator: torch.Generator,
    device: torch.device,
) -> list[dict[str, Tensor] | Tensor]:
    config = loaded.model.config
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
    length = min([length, *(limit for limit in limits if isinstance(limit, int) and limit > 0)])
    content = None if text is None else _read(text, _CHARACTERS * length * batch * batches)
    if content is not None and loaded.tokenizer is None:
        loaded.notes.append(f"no tokenizer was found with {loaded.source}: {text} was not used, the tokens are random")
        content = None
    elif content is None:
        loaded.notes.append("the tokens are random: figures on text (--text FILE) can differ a lot")
    if content is None:
        rows = _random_rows(config, length, batch * batches, generator)
    else:
        rows = _text_rows(loaded, text, content, length)[: batch * batches]
    made: list[dict[str, Tensor] | Tensor] = []
    for start in range(0, len(rows), batch):
        ids = rows[start : start + batch].to(device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if getattr(config, "is_encoder_decoder", False):
            first = config.decoder_start_token_id or 0
            inputs["decoder_input_ids"] = torch.cat([torch.full_like(ids[:, :1], first), ids[:, :-1]], 1)
        made.append(inputs)
    return made


def _read(path: Path, characters: int) -> str:
    if not path.is_file():
        raise ArgumentValueError(f"--text: {path} is no file: give a plain text file, or leave --text out")
    try:
        with path.open(encoding="utf-8") as stream:
            return stream.read(characters)
    except UnicodeDecodeError as error:
        raise ArgumentValueError(f"--text: {path} is no UTF-8 text ({error.reason}): give a plain text file") from error


def _random_rows(config: Any, length: int, count: int, generator: torch.Generator) -> Tensor:
    """Tokens drawn equally from all but the special ones, after the first token that the model knows."""
    vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(vocabulary, int):
        raise StateError(f"{type(config).__name__} states no vocab_size: pass batches to softgate.diagnostics.report")
    special = {getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
    allowed = torch.tensor([token for token in range(vocabulary) if token not in special])
    rows = allowed[torch.randint(len(allowed), (count, length), generator=generator)]
    first = getattr(config, "bos_token_id", None)
    if isinstance(first, int):
        rows[:, 0] = first
    return rows


def _text_rows(loaded: DiagnosedModel, path: Path | None, content: str, length: int) -> Tensor:
    """Full rows of tokens with the special tokens that the tokenizer adds; one shorter row if there is no full one."""
    tokenizer = loaded.tokenizer
    if getattr(tokenizer, "is_fast", False):
        options = {"truncation": True, "max_length": length, "return_overflowing_tokens": True}
        rows = tokenizer(content, verbose=False, **options)["input_ids"]
    else:
        ids = tokenizer(content, verbose=False)["input_ids"]
        rows = [ids[start : start + length] for start in range(0, len(ids), length)]
    full = [row for row in rows if len(row) == length] or rows[:1]
    if not full or len(full[0]) < _FEWEST_TOKENS:
        raise ArgumentValueError(
            f"--text: {path} gives {len(full[0]) if full else 0} tokens, at least {_FEWEST_TOKENS} are needed: give a "
            "longer file"
        )
    made = torch.tensor(full)
    table = loaded.model.get_input_embeddings()
    if int(made.max()) >= table.weight.shape[0]:
        raise StateError(
            f"the tokenizer of {loaded.source} gives token {int(made.max())}, the model has {table.weight.shape[0]}"
        )
    return made


def _image_batches(
    loaded: DiagnosedModel,
    folder: Path | None,
    batch: int,
    batches: int,
    generator: torch.Generator,
    device: torch.device,
) -> list[dict[str, Tensor] | Tensor]:
    shape = _image_shape(loaded)
    if folder is None:
        loaded.notes.append("the images are noise: figures on photographs (--images FOLDER) can differ a lot")
        images = torch.randn(batch * batches, *shape, generator=generator)
    else:
        images = _read_images(folder, batch * batches, shape, _statistics(loaded, shape[0]))
    images = images.to(device, next(loaded.model.parameters()).dtype)
    parts = images.split(batch)
    return list(parts) if loaded.library == "timm" else [{"pixel_values": part} for part in parts]


def _image_shape(loaded: DiagnosedModel) -> tuple[int, int, int]:
    if loaded.library == "timm":
        channels, height, width = loaded.model.pretrained_cfg["input_size"]
        made_for = getattr(getattr(loaded.model, "patch_embed", None), "img_size", None)
        return (channels, *made_for) if isinstance(made_for, tuple) else (channels, height, width)
    config = getattr(loaded.model.config, "vision_config", loaded.model.config)
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    return getattr(config, "num_channels", 3), height, width


def _statistics(loaded: DiagnosedModel, channels: int) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation per channel that the model was trained with; 0.5 where nothing says."""
    found: dict[str, Any] = {}
    if loaded.library == "timm":
        found = {
            "image_mean": loaded.model.pretrained_cfg.get("mean"),
            "image_std": loaded.model.pretrained_cfg.get("std"),
        }
    else:
        path = Path(loaded.source) / "preprocessor_config.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
    half = [0.5] * channels
    return found.get("image_mean") or half, found.get("image_std") or half


def _read_images(
    folder: Path, count: int, shape: tuple[int, int, int], statistics: tuple[Sequence[float], Sequence[float]]
) -> Tensor:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "data", "reading images") from error
    import numpy as np

    if not folder.is_dir():
        raise ArgumentValueError(f"--images: {folder} is no folder: give one with images, or leave --images out")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGES)[:count]
    if not paths:
        raise ArgumentValueError(f"--images: {folder} holds no image ({', '.join(_IMAGES)})")
    channels, height, width = shape
    pixels = []
    for path in paths:
        try:
            with Image.open(path) as image:
                scaled = image.convert("L" if channels == 1 else "RGB").resize((width, height))
        except OSError as error:
            raise StateError(f"{path} cannot be read as an image ({error}): remove it from the folder") from error
        pixels.append(torch.from_numpy(np.array(scaled, dtype=np.float32) / 255.0).reshape(height, width, channels))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in statistics)
    return (torch.stack(pixels).permute(0, 3, 1, 2) - mean) / std
