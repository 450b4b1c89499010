"""Randomly initialised models small enough that a test can run dozens of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softgate.integrations import torchvision_cpu

VOCABULARY, LENGTH, WIDTH = 60, 24, 32


def _transformers() -> Any:
    from softgate.swapping.attention_interface import load_transformers

    return load_transformers()


def _decoder(model: str, config: str, **sizes: Any) -> Any:
    hf = _transformers()
    return getattr(hf, model)(getattr(hf, config)(**_COMMON, **sizes))


#: Weights drawn this wide give attention weights far from uniform, so that a change of the method is seen.
_SPREAD = 0.2
_COMMON = {
    "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "initializer_range": _SPREAD,
}  # fmt: skip
_LLAMA = {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48,
}  # fmt: skip
_EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}


def llama() -> Any:
    return _decoder("LlamaForCausalLM", "LlamaConfig", **_LLAMA)


def qwen3() -> Any:
    return _decoder("Qwen3ForCausalLM", "Qwen3Config", **_LLAMA, head_dim=8)


def qwen3_moe() -> Any:
    return _decoder("Qwen3MoeForCausalLM", "Qwen3MoeConfig", **_LLAMA, head_dim=8, **_EXPERTS)


def mixtral() -> Any:
    return _decoder("MixtralForCausalLM", "MixtralConfig", **_LLAMA, num_local_experts=4, num_experts_per_tok=2)


def gpt2() -> Any:
    hf = _transformers()
    config = hf.GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=WIDTH, n_layer=2, n_head=4,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=_SPREAD,
    )  # fmt: skip
    return hf.GPT2LMHeadModel(config)


def bert() -> Any:
    hf = _transformers()
    config = hf.BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=LENGTH, pad_token_id=0, initializer_range=_SPREAD, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return hf.BertForSequenceClassification(config)


def vit() -> Any:
    hf = _transformers()
    config = hf.ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16,
        patch_size=4, num_channels=3, num_labels=5, initializer_range=_SPREAD,
    )  # fmt: skip
    return hf.ViTForImageClassification(config)


def t5() -> Any:
    hf = _transformers()
    config = hf.T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=4, n_positions=LENGTH,
        pad_token_id=0, eos_token_id=2, decoder_start_token_id=0,
    )  # fmt: skip
    return hf.T5ForConditionalGeneration(config)


def timm_vit() -> Any:
    torchvision_cpu.repair()
    timm = importlib.import_module("timm")
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=WIDTH, depth=2, num_heads=4, num_classes=5
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=_SPREAD)
    return model


#: name -> (builder, kind of input)
MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "llama": (llama, "decoder"),
    "qwen3": (qwen3, "decoder"),
    "qwen3_moe": (qwen3_moe, "decoder"),
    "gpt2": (gpt2, "decoder"),
    "bert": (bert, "encoder"),
    "vit": (vit, "image"),
    "t5": (t5, "encoder-decoder"),
}
DECODERS = [name for name, (_, kind) in MODELS.items() if kind == "decoder"]


def build(name: str) -> Any:
    """The model ``name`` in evaluation mode; the same weights at every call."""
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def tokens(rows: int = 2, length: int = 9, seed: int = 1) -> Tensor:
    """Token ids without special tokens."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def inputs(name: str) -> dict[str, Tensor]:
    """Inputs with labels for one training step of the model ``name``; the first row is padded at the left."""
    kind = MODELS[name][1]
    if kind == "image":
        images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        return {"pixel_values": images, "labels": torch.tensor([1, 3])}
    ids = tokens()
    keep = torch.ones_like(ids)
    keep[0, :3] = 0
    if kind == "encoder":
        return {"input_ids": ids, "attention_mask": keep, "labels": torch.tensor([0, 1])}
    if kind == "encoder-decoder":
        return {"input_ids": ids, "attention_mask": keep, "labels": tokens(length=7, seed=2)}
    return {"input_ids": ids, "attention_mask": keep, "labels": ids.masked_fill(keep == 0, -100)}
