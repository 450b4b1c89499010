"""A tiny CLIP with random weights and a word-level tokenizer, as transformers makes them."""

from __future__ import annotations

from typing import Any

import torch

WORDS = (
    *("a", "photo", "picture", "of", "the", "sketch", "drawing", "with", "it", "."),
    *("red", "blue", "green", "cat", "dog", "bird", "big", "café", "in"),
)
TEMPLATES = [
    ["a photo of a {}", "the picture of a {}"],
    ["a sketch of the {} with it", "a drawing of {}"],
    ["{} in it"],
]
NAMES = ["cat", "big red dog", "blue_bird"]


def make_tokenizer(words: tuple[str, ...] = WORDS) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate((*words, "<unk>", "<start>", "<end>"))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<start>", eos_token="<end>", unk_token="<unk>", pad_token="<end>"
    )


def make_clip(seed: int = 0, *, legacy: bool = False, length: int = 16, words: int = len(WORDS) + 3) -> Any:
    """Two layers of width 32, images of 16×16; ``legacy`` pools the text at the largest token id."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    shared = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    text = {**shared, "vocab_size": words, "max_position_embeddings": length, "bos_token_id": words - 2}
    text |= {"eos_token_id": 2 if legacy else words - 1, "pad_token_id": words - 1}
    vision = {**shared, "image_size": 16, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
