"""The small networks that methods are compared in; all variants start from the same values of what they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from softgate.attention import GatedAttention
from softgate.lab import seeds
from softgate.lab.compare.sizes import Size
from softgate.lab.compare.tasks import Shape
from softgate.models import GPT, MLP, GPTConfig, ViT, ViTConfig
from softgate.routing import MoE

__all__ = ["Parts", "build", "build_with_shared_start"]

_TOP_K = 2


@dataclass(frozen=True)
class Parts:
    """What may differ between the variants of a comparison; everything else is the same.

    Attributes:
        attention: ``"gated"``, or a function called like scaled_dot_product_attention.
        attention_options: its further arguments.
        activation: makes the nonlinearity of the feed-forward layers; None leaves the network's own.
        gate: ``(width, experts, top_k) -> gate`` of mixtures of experts in the place of the feed-forward layers; None
            for dense layers.
    """

    attention: str | Callable[..., Any] = "softmax"
    attention_options: dict[str, Any] = field(default_factory=dict)
    activation: Callable[[], nn.Module] | None = None
    gate: Callable[[int, int, int], nn.Module] | None = None


def build_with_shared_start(parts: Parts, common: Parts, shape: Shape, size: Size, seed: int) -> nn.Module:
    """The network with ``parts``; parameters that it shares with the network of ``common`` start from its values.

    Args:
        parts: of this variant.
        common: the parts that all variants are measured against: the same in every call of a comparison.
        shape: of the data.
        size: of the network.
        seed: of all initial values.
    """
    with seeds.isolated_rng(seeds.derive(seed, "compare", "start")):
        start = dict(build(common, shape, size).named_parameters())
    with seeds.isolated_rng(seeds.derive(seed, "compare", "start")):
        model = build(parts, shape, size)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in start and start[name].shape == parameter.shape:
                parameter.copy_(start[name])
    return model


def build(parts: Parts, shape: Shape, size: Size) -> nn.Module:
    """A GPT for text, a vision transformer for images, an MLP for tables."""
    if shape.kind == "text":
        return _gpt(parts, shape, size)
    return _vit(parts, shape, size) if shape.kind == "images" else _mlp(parts, shape, size)


def _gpt(parts: Parts, shape: Shape, size: Size) -> GPT:
    sizes = {name: size.model[name] for name in ("num_layers", "num_heads", "embed_dim")}
    config = GPTConfig(
        shape.classes,
        **sizes,
        attention=parts.attention,
        attention_options=parts.attention_options,
        ffn="glu" if parts.activation is None else "mlp",
    )
    model = GPT(config)
    block: Any
    for block in model.blocks:
        if parts.activation is not None:
            block.ffn.activation = parts.activation()
        if parts.gate is not None:
            width, experts = config.embed_dim, size.model["n_experts"]
            gate: Any = parts.gate(width, experts, _TOP_K)
            block.ffn = MoE(width, size.model["d_ff"], experts, gate=gate, inject_aux=True, n_layers=config.num_layers)
    return model


def _vit(parts: Parts, shape: Shape, size: Size) -> ViT:
    channels, height, _ = shape.inputs
    config = ViTConfig(
        image_size=height,
        patch_size=height // patches_per_side(height, size),
        channels=channels,
        num_classes=shape.classes,
        depth=size.model["depth"],
        embed_dim=size.model["embed_dim"],
        num_heads=size.model["num_heads"],
        attention=_GatedMixer if parts.attention == "gated" else parts.attention,
        attention_options=parts.attention_options,
    )
    model = ViT(config)
    block: Any
    for block in model.blocks:
        if parts.activation is not None:
            block.mlp[1] = parts.activation()
    return model


def patches_per_side(side: int, size: Size) -> int:
    """The number of patches along a side of an image: the divisor of ``side`` that is nearest to the size's own."""
    return min((n for n in range(1, side + 1) if side % n == 0), key=lambda n: abs(n - size.model["patches"]))


class _GatedMixer(GatedAttention):
    """Gated attention called as a mixer of image tokens, with the biases of the mixers it stands beside."""

    def __init__(self, embed_dim: int, num_heads: int, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, bias=True, **options)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:  # type: ignore[override]
        return super().forward(tokens, is_causal=False)

    def attention_weights(self, tokens: Tensor, height: int, width: int) -> Tensor:  # type: ignore[override]
        return super().attention_weights(tokens, is_causal=False)


def _mlp(parts: Parts, shape: Shape, size: Size) -> MLP:
    widths = (*shape.inputs, *size.model["hidden"], shape.classes)
    return MLP(widths, activation=parts.activation or nn.ReLU)
