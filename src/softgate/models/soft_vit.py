"""The pyramid vision transformers of SOFT and SOFT++: linear-time attention at high resolution, softmax at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softgate._checks import check_number
from softgate.attention.multihead import MultiHeadAttention
from softgate.attention.soft_module import SoftmaxFreeAttention
from softgate.errors import ArgumentValueError, bad_type, bad_value

__all__ = [
    "SOFTViT",
    "SOFTViTConfig",
    "soft_cifar",
    "soft_huge",
    "soft_large",
    "soft_medium",
    "soft_small",
    "soft_tiny",
]

_INIT_STD = 0.02
_STEM_WIDTH = 32
_NORM_EPS = 1e-6


@dataclass(frozen=True)
class SOFTViTConfig:
    """Sizes of a :class:`SOFTViT`; the defaults are SOFT-Tiny of the paper (normalised: SOFT++).

    All stages but the last have softmax-free attention, the last softmax attention with a class token.

    Attributes:
        image_size: side of the images that the position tables are made for; others are resized to fit.
        channels: of the images.
        num_classes: outputs.
        embed_dims: width of each stage, at least two.
        num_heads: heads of each stage.
        depths: blocks of each stage.
        ratios: side of a landmark's patch, for each softmax-free stage.
        conv_sizes: side of the depth-wise value filters, likewise; 0 for none.
        stem_strides: of the three convolutions before the first stage; every later stage halves the map.
        mlp_ratio: width of the feed-forward layers over that of the stage.
        drop_rate: dropout of the residual branches in the last block, growing linearly from 0 in the first.
        normalized: SOFT++ if True, SOFT if False.
        attention_options: further options of :class:`softgate.attention.SoftmaxFreeAttention`.
    """

    image_size: int = 224
    channels: int = 3
    num_classes: int = 1000
    embed_dims: tuple[int, ...] = (64, 128, 320, 512)
    num_heads: tuple[int, ...] = (2, 4, 10, 16)
    depths: tuple[int, ...] = (1, 2, 3, 2)
    ratios: tuple[int, ...] = (8, 4, 2)
    conv_sizes: tuple[int, ...] = (9, 5, 3)
    stem_strides: tuple[int, int, int] = (2, 1, 2)
    mlp_ratio: int = 4
    drop_rate: float = 0.1
    normalized: bool = True
    attention_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stages = len(self.embed_dims)
        if stages < 2:
            bad_value("embed_dims", self.embed_dims, "the widths of at least two stages")
        lengths = {"num_heads": stages, "depths": stages, "ratios": stages - 1, "conv_sizes": stages - 1}
        for name, length in {**lengths, "embed_dims": stages, "stem_strides": 3}.items():
            values = getattr(self, name)
            low = 0 if name == "conv_sizes" else 1
            good = isinstance(values, tuple) and all(type(v) is int and v >= low for v in values)
            if not good or len(values) != length:
                bad_value(name, values, f"a tuple of {length} ints of at least {low}")
        for name in ("image_size", "channels", "num_classes", "mlp_ratio"):
            value = getattr(self, name)
            if type(value) is not int:
                bad_type(name, value, "a positive int")
            if value < 1:
                bad_value(name, value, "a positive int")
        check_number("drop_rate", self.drop_rate, low=0.0, high=1.0, high_open=True)


class SOFTViT(nn.Module):
    """Pyramid vision transformer with softmax-free attention.

    An overlapping convolutional stem; between stages a 3x3 convolution of stride 2, each convolution with batch norm
    and ReLU; learned positions in every stage, resized bilinearly for other image sizes; post-norm softmax-free blocks
    ``y = LN(x + attn(x)); LN(y + mlp(y))``; in the last stage a class token and pre-norm softmax blocks.

    Args:
        config: sizes; SOFT-Tiny of the paper if None.

    Shapes: images (B, channels, height, width) -> logits (B, num_classes).

    Raises:
        ArgumentValueError: sizes that do not fit, or images too small for a landmark in some stage.

    Example:
        >>> import torch
        >>> from softgate.models import soft_cifar
        >>> soft_cifar()(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Paper: SOFT, arXiv 2110.11945, section 3.4 and table 1; SOFT++, arXiv 2207.03341.
    """

    def __init__(self, config: SOFTViTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SOFTViTConfig()
        blocks = sum(config.depths)
        rates = [config.drop_rate * block / (blocks - 1) for block in range(blocks)]
        self.stages = nn.ModuleList()
        side = config.image_size
        for index, depth in enumerate(config.depths):
            first = index == 0
            strides = config.stem_strides if first else (2,)
            for stride in strides:
                side = (side - 1) // stride + 1
            widths = (config.channels, _STEM_WIDTH, _STEM_WIDTH) if first else (config.embed_dims[index - 1],)
            embedding = _convolutions((*widths, config.embed_dims[index]), strides)
            stage_rates, rates = rates[:depth], rates[depth:]
            self.stages.append(_Stage(config, index, side, embedding, stage_rates))
        self.norm = nn.LayerNorm(config.embed_dims[-1], eps=_NORM_EPS)
        self.head = nn.Linear(config.embed_dims[-1], config.num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw linear layers, positions and the class token from a normal law with standard deviation 0.02."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, _Stage):
                module.reset_parameters()

    def features(self, images: Tensor) -> Tensor:
        """The class token's features before the classifier, (B, embed_dims[-1])."""
        if images.ndim != 4 or images.shape[1] != self.config.channels:
            raise ArgumentValueError(
                f"images must have shape (batch, {self.config.channels}, height, width), got {tuple(images.shape)}"
            )
        x = images
        for stage in self.stages:
            x = stage(x)
        return self.norm(x[:, 0])

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of ``images`` (B, channels, height, width)."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def num_parameters(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.parameters())


class _Stage(nn.Module):
    """Convolutions that make the tokens of a map, positions, blocks; the last stage adds a class token."""

    def __init__(self, config: SOFTViTConfig, index: int, side: int, embedding: nn.Module, rates: list[float]) -> None:
        super().__init__()
        width, heads = config.embed_dims[index], config.num_heads[index]
        self.embedding, self.side, self.is_last = embedding, side, index == len(config.depths) - 1
        self.positions = nn.Parameter(torch.empty(1, side * side + self.is_last, width))
        self.class_token = nn.Parameter(torch.empty(1, 1, width)) if self.is_last else None
        if self.is_last:
            self.blocks = nn.ModuleList(_SoftmaxBlock(width, heads, config.mlp_ratio, rate) for rate in rates)
            return
        options = {"normalized": config.normalized, **config.attention_options}
        ratio, conv_size = config.ratios[index], config.conv_sizes[index]
        self.blocks = nn.ModuleList(
            _SoftmaxFreeBlock(
                SoftmaxFreeAttention(width, heads, ratio, conv_size, **options), width, config.mlp_ratio, rate
            )
            for rate in rates
        )

    def reset_parameters(self) -> None:
        for parameter in (self.positions, self.class_token):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=_INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        """A map (B, C, H, W) to the stage's map, in the last stage to its tokens, class token first."""
        x = self.embedding(x)
        height, width = x.shape[-2:]
        tokens = x.flatten(2).mT
        if self.class_token is not None:
            tokens = torch.cat((self.class_token.expand(len(tokens), -1, -1), tokens), 1)
        tokens = tokens + self._positions(height, width)
        for block in self.blocks:
            tokens = block(tokens, height, width)
        return tokens if self.is_last else tokens.mT.unflatten(-1, (height, width))

    def _positions(self, height: int, width: int) -> Tensor:
        """The learned table, resized bilinearly where the map has another size."""
        if height == self.side == width:
            return self.positions
        own, table = self.positions[:, : self.is_last], self.positions[:, self.is_last :]
        grid = table.mT.unflatten(-1, (self.side, self.side))
        return torch.cat((own, F.interpolate(grid, (height, width), mode="bilinear").flatten(2).mT), 1)


class _SoftmaxFreeBlock(nn.Module):
    """Post-norm: y = LN(x + attn(x)), then LN(y + mlp(y))."""

    def __init__(self, attention: nn.Module, width: int, mlp_ratio: int, rate: float) -> None:
        super().__init__()
        self.attention, self.mlp = attention, _mlp(width, mlp_ratio, "tanh")
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(rate)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, height, width)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))


class _SoftmaxBlock(nn.Module):
    """Pre-norm softmax attention over the class token and all others."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, rate: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width, heads, bias=True)
        self.mlp = _mlp(width, mlp_ratio, "none")
        self.attention_norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp_norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.dropout = nn.Dropout(rate)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), is_causal=False))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


def _mlp(width: int, ratio: int, approximate: str) -> nn.Module:
    return nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(approximate), nn.Linear(ratio * width, width))


def _convolutions(widths: tuple[int, ...], strides: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in zip(widths[:-1], widths[1:], strides, strict=True):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


#: What differs from SOFT-Tiny. Heads have 32 features throughout.
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {"depths": (1, 3, 20, 4)},
    "medium": {"depths": (1, 3, 29, 5), "embed_dims": (64, 128, 288, 512), "num_heads": (2, 4, 9, 16)},
    "large": {"depths": (1, 3, 40, 5)},
    "huge": {"depths": (1, 5, 49, 5), "embed_dims": (64, 128, 352, 512), "num_heads": (2, 4, 11, 16)},
    "cifar": {
        "image_size": 32,
        "num_classes": 10,
        "embed_dims": (48, 96, 192),
        "num_heads": (2, 4, 6),
        "depths": (1, 2, 2),
        "ratios": (4, 2),
        "conv_sizes": (5, 3),
        "stem_strides": (1, 1, 2),
        "drop_rate": 0.0,
    },
}


def _build(size: str, normalized: bool, sizes: dict[str, Any]) -> SOFTViT:
    return SOFTViT(replace(SOFTViTConfig(), **{"normalized": normalized, **_SIZES[size], **sizes}))


def soft_tiny(*, normalized: bool = True, **sizes: Any) -> SOFTViT:
    """SOFT-Tiny (13.1M parameters; SOFT++ if ``normalized``); ``sizes`` as in SOFTViTConfig."""
    return _build("tiny", normalized, sizes)


def soft_small(*, normalized: bool = True, **sizes: Any) -> SOFTViT:
    """SOFT-Small: 38.9M parameters at the depths of the authors' code, whose table says 24M; see :func:`soft_tiny`."""
    return _build("small", normalized, sizes)


def soft_medium(*, normalized: bool = True, **sizes: Any) -> SOFTViT:
    """SOFT-Medium (45.8M parameters); see :func:`soft_tiny`."""
    return _build("medium", normalized, sizes)


def soft_large(*, normalized: bool = True, **sizes: Any) -> SOFTViT:
    """SOFT-Large (64.7M parameters); see :func:`soft_tiny`."""
    return _build("large", normalized, sizes)


def soft_huge(*, normalized: bool = True, **sizes: Any) -> SOFTViT:
    """SOFT-Huge (87.1M parameters); see :func:`soft_tiny`."""
    return _build("huge", normalized, sizes)


def soft_cifar(*, normalized: bool = True, **sizes: Any) -> SOFTViT:
    """A small pyramid of three stages for 32x32 images (not in the paper): maps of 16², 8² and 4² tokens."""
    return _build("cifar", normalized, sizes)
