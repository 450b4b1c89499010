"""A small vision transformer whose token mixer can be exchanged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_number
from softgate.attention.multihead import MultiHeadAttention
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value

__all__ = ["ViT", "ViTConfig"]


@dataclass(frozen=True)
class ViTConfig:
    """Sizes and parts of a :class:`ViT`.

    Attributes:
        image_size: height and width of the images in pixels, a multiple of ``patch_size``.
        patch_size: side of a patch; an image has ``(image_size / patch_size)²`` tokens.
        channels: of the images.
        num_classes: outputs.
        depth: blocks.
        embed_dim: width of the tokens.
        num_heads: heads.
        attention: the token mixer: ``"softmax"``, the name of a function ``softgate.attention.<name>_attention``, a
            callable with the signature of ``scaled_dot_product_attention``, or a module class (or a partial of one)
            called with (embed_dim, num_heads, **attention_options). Such a module is called as
            ``mixer(tokens, height, width)`` with tokens (B, height · width, embed_dim).
        attention_options: further arguments of the function or the module class.
        mlp_ratio: width of the feed-forward layer over ``embed_dim``.
        dropout: of the residual branches.
    """

    image_size: int = 28
    patch_size: int = 4
    channels: int = 1
    num_classes: int = 10
    depth: int = 2
    embed_dim: int = 32
    num_heads: int = 2
    attention: str | Callable[..., Any] = "softmax"
    attention_options: Mapping[str, Any] = field(default_factory=dict)
    mlp_ratio: float = 4.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "channels", "num_classes", "depth", "embed_dim", "num_heads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                bad_type(name, value, "a positive int")
            if value < 1:
                bad_value(name, value, "a positive int")
        if self.image_size % self.patch_size:
            bad_value("image_size", self.image_size, f"a multiple of patch_size={self.patch_size}")
        if self.embed_dim % self.num_heads:
            bad_value("embed_dim", self.embed_dim, f"a multiple of num_heads={self.num_heads}")
        check_number("mlp_ratio", self.mlp_ratio, low=0.0, low_open=True)
        check_number("dropout", self.dropout, low=0.0, high=1.0, high_open=True)


class ViT(nn.Module):
    """Vision transformer: patches, learned positions, pre-norm blocks, mean pooling, linear classifier.

    All linear layers, those of the mixers included, start from the same law (Xavier uniform, biases zero), so that
    models that differ in the mixer alone start alike.

    Args:
        config: sizes and parts.

    Shapes: images (B, channels, image_size, image_size) -> logits (B, num_classes).

    Example:
        >>> import torch
        >>> ViT(ViTConfig(image_size=8, patch_size=4, depth=1))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.side = config.image_size // config.patch_size
        self.patches = nn.Conv2d(config.channels, config.embed_dim, config.patch_size, config.patch_size)
        self.positions = nn.Parameter(torch.empty(self.side**2, config.embed_dim))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim)
        self.head = nn.Linear(config.embed_dim, config.num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw positions and all linear layers anew; convolutions and norms keep their own initialisation."""
        nn.init.normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of ``images`` (B, channels, image_size, image_size)."""
        expected = (self.config.channels, self.config.image_size, self.config.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            sizes = ", ".join(map(str, expected))
            raise ArgumentValueError(f"images must have shape (batch, {sizes}), got {tuple(images.shape)}")
        x = self.patches(images).flatten(2).mT + self.positions
        for block in self.blocks:
            x = block(x, self.side)
        return self.head(self.norm(x).mean(1))


class _Block(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        hidden = int(config.mlp_ratio * config.embed_dim)
        self.mixer_norm = nn.LayerNorm(config.embed_dim)
        self.mixer = _mixer(config)
        self.mlp_norm = nn.LayerNorm(config.embed_dim)
        self.mlp = nn.Sequential(nn.Linear(config.embed_dim, hidden), nn.GELU(), nn.Linear(hidden, config.embed_dim))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, side: int) -> Tensor:
        x = x + self.dropout(self.mixer(self.mixer_norm(x), side, side))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class _BidirectionalAttention(MultiHeadAttention):
    """Multi-head attention called as a mixer of image tokens."""

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:  # type: ignore[override]
        return super().forward(tokens, is_causal=False)

    def attention_weights(self, tokens: Tensor, height: int, width: int) -> Tensor:  # type: ignore[override]
        return super().attention_weights(tokens, is_causal=False)


def _mixer(config: ViTConfig) -> nn.Module:
    options = dict(config.attention_options)
    kind = getattr(config.attention, "func", config.attention)  # of a functools.partial
    if isinstance(kind, type) and issubclass(kind, nn.Module):
        return config.attention(config.embed_dim, config.num_heads, **options)  # type: ignore[operator]
    if not isinstance(config.attention, str) and not callable(config.attention):
        raise ArgumentTypeError(
            f"attention must be a name, a callable or a module class, got {type(config.attention).__name__}"
        )
    return _BidirectionalAttention(
        config.embed_dim, config.num_heads, attention=config.attention, attention_options=options, bias=True
    )
