"""A CLIP of transformers that is small enough to train from nothing in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import MissingExtraError
from softgate.integrations import torchvision_cpu
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.data.styled_digits import SIZE, WORDS, StyledDigits
from softgate.lab.training import TrainConfig, fit

__all__ = ["make_tiny_clip", "make_word_tokenizer", "pretrain"]

_WIDTH = 64
_LENGTH = 16


class _ConvolutionalEncoder(nn.Module):
    """Two strided convolutions and a linear layer in the place of CLIP's vision transformer."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        left = (size + 3) // 4
        self.layers = nn.Sequential(
            nn.Conv2d(3, width // 2, 3, 2, 1), nn.ReLU(), nn.Conv2d(width // 2, width, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(width * left * left, width),
        )  # fmt: skip

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        """The output of a vision model, with the image's feature as its ``pooler_output``."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(pooler_output=self.layers(pixel_values))


def _transformers() -> Any:
    torchvision_cpu.repair()
    try:
        import tokenizers
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "hf", "a CLIP") from error
    return transformers, tokenizers


def make_word_tokenizer(words: Sequence[str]) -> Any:
    """A tokenizer of transformers that knows these words, and a start and an end token."""
    transformers, tokenizers = _transformers()
    vocabulary = {word: index for index, word in enumerate((*words, "<start>", "<end>"))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<end>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="<end>"
    )


def make_tiny_clip(tokenizer: Any, size: int = SIZE) -> Any:
    """A CLIPModel with a text transformer of two layers and a convolutional image encoder, both 64 wide."""
    transformers, _ = _transformers()
    shared = {"hidden_size": _WIDTH, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 4 * _WIDTH}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": _LENGTH, "bos_token_id": tokenizer.bos_token_id}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    vision = {**shared, "num_hidden_layers": 0, "image_size": size, "patch_size": size}
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(text_config={**shared, **text}, vision_config=vision, projection_dim=_WIDTH)
    )
    clip.vision_model = _ConvolutionalEncoder(size, _WIDTH)
    return clip


def pretrain(run: CellRun, world: StyledDigits, steps: int, batch: int = 160) -> tuple[Any, Any]:
    """A tiny CLIP trained on images and captions of ``world`` by CLIP's contrastive loss, and its tokenizer."""
    seeds.seed_everything(seeds.derive(run.seed, "clip"))
    tokenizer = make_word_tokenizer(WORDS)
    clip = make_tiny_clip(tokenizer)

    def batches(step: int) -> tuple[Tensor, Tensor]:
        images, captions = world.pairs(step, batch)
        framed = [f"<start> {caption} <end>" for caption in captions]
        ids = tokenizer(framed, padding=True, add_special_tokens=False)["input_ids"]
        return images, torch.tensor(ids)

    def step_loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        loss: Tensor = model(input_ids=pair[1], pixel_values=pair[0], return_loss=True).loss
        return loss

    # a rise and a fall to nothing: one cycle
    config = TrainConfig(steps=steps, lr=2e-3, warmup=max(1, steps // 5), min_lr_ratio=0.0, weight_decay=0.01)
    fit(clip, step_loss, config, batches=batches, run=run, name="clip")
    return clip, tokenizer
