"""NaLaFormer: a vision backbone of four stages, the first two with norm-aware linear attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from softgate._checks import check_number
from softgate.attention.norm_aware.rotation import turn_pairs
from softgate.attention.norm_aware_module import MapAttention, NormAwareLinearAttention
from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice

__all__ = ["NALAFORMER_CONFIGS", "NaLaFormer", "NaLaFormerConfig"]

_KINDS = ("linear", "softmax")


@dataclass(frozen=True)
class NaLaFormerConfig:
    """Sizes and parts of a :class:`NaLaFormer`.

    Attributes:
        dims: width of each stage.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        mlp_ratio: width of the feed-forward layer over that of the stage.
        drop_path: chance of leaving out the residual branches of the last block; it grows linearly from 0.
        attention: of each stage, ``"linear"`` (norm-aware) or ``"softmax"``; the released models are hybrids.
        attention_options: of the linear stages, ``direction``, ``power``, ``tau``, ``alpha``, ``norm_scale``.
        layer_scale: where the learned factors of the residual branches start.
        head_dim: width of the classifier's hidden layer.
        channels: of the images.
        num_classes: outputs.
        stem_stride: 4 (images of 224 pixels) or 2 (small images).
    """

    dims: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (1, 2, 4, 8)
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    attention: tuple[str, ...] = ("linear", "linear", "softmax", "softmax")
    attention_options: Mapping[str, Any] = field(default_factory=dict)
    layer_scale: float = 1.0
    head_dim: int = 1024
    channels: int = 3
    num_classes: int = 1000
    stem_stride: int = 4

    def __post_init__(self) -> None:
        for name in ("dims", "depths", "num_heads", "attention"):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                bad_type(name, value, "a tuple with an entry for each stage")
            if not value or len(value) != len(self.dims):
                bad_value(name, value, f"of {len(self.dims)} entries, one for each stage, and of at least one")
        for name in ("dims", "depths", "num_heads", "head_dim", "channels", "num_classes"):
            value = getattr(self, name)
            for size in value if isinstance(value, tuple) else (value,):
                if isinstance(size, bool) or not isinstance(size, int):
                    bad_type(name, size, "made of positive ints")
                if size < 1:
                    bad_value(name, size, "made of positive ints")
        for dim, heads in zip(self.dims, self.num_heads, strict=True):
            if dim % (4 * heads):
                bad_value("dims", dim, f"a multiple of 4 * {heads} heads")
        for kind in self.attention:
            check_choice("attention", kind, _KINDS)
        if self.stem_stride not in (2, 4):
            bad_value("stem_stride", self.stem_stride, "2 or 4")
        check_number("mlp_ratio", self.mlp_ratio, low=0.0, low_open=True, high_open=True)
        check_number("drop_path", self.drop_path, low=0.0, high=1.0, high_open=True)
        check_number("layer_scale", self.layer_scale)


#: The published sizes, and ``"small_images"`` for 32 x 32 pixels.
NALAFORMER_CONFIGS: dict[str, NaLaFormerConfig] = {
    "xt": NaLaFormerConfig((32, 64, 128, 384), (2, 2, 2, 2), (1, 2, 4, 12), 3.5, 0.1),
    "t": NaLaFormerConfig((64, 128, 256, 512), (2, 2, 6, 2), (1, 2, 4, 8), 4.0, 0.1),
    "s": NaLaFormerConfig((64, 128, 320, 512), (3, 5, 9, 3), (1, 2, 5, 8), 3.5, 0.15),
    "b": NaLaFormerConfig((96, 192, 384, 512), (4, 6, 12, 6), (1, 2, 6, 8), 4.0, 0.4),
    "l": NaLaFormerConfig((96, 192, 448, 640), (4, 7, 19, 8), (1, 2, 7, 10), 3.5, 0.55),
    "small_images": NaLaFormerConfig(
        (32, 64), (1, 1), (1, 2), 2.0, 0.0, ("linear", "softmax"), head_dim=128, num_classes=10, stem_stride=2
    ),
}


class NaLaFormer(nn.Module):
    """A hierarchical vision transformer with norm-aware linear attention where maps are large.

    A stem of four 3 x 3 convolutions, stages of blocks (depth-wise positions, attention with gate and LePE,
    feed-forward layer with a depth-wise convolution), 3 x 3 convolutions of stride 2 between stages, and a pooled
    classifier.

    Args:
        config: sizes and parts, or the name of a published size: ``"xt"``, ``"t"``, ``"s"``, ``"b"``, ``"l"``; or
            ``"small_images"``.

    Shapes: images (B, channels, height, width) -> logits (B, num_classes).

    Raises:
        ArgumentValueError: an unknown name, or images too small for the stages.

    Example:
        >>> import torch
        >>> NaLaFormer("small_images")(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Paper: arXiv 2506.21137 (NaLaFormer); sizes as released. Details of stem, merging and classifier that neither the
    paper nor the specification of the released code fixes are this library's.
    """

    def __init__(self, config: NaLaFormerConfig | str = "t") -> None:
        super().__init__()
        if isinstance(config, str):
            check_choice("config", config, tuple(NALAFORMER_CONFIGS))
            config = NALAFORMER_CONFIGS[config]
        if not isinstance(config, NaLaFormerConfig):
            bad_type("config", config, "a NaLaFormerConfig or the name of one")
        self.config = config
        self.stem = _stem(config.channels, config.dims[0], config.stem_stride)
        depth = sum(config.depths)
        chances = [config.drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.stages, self.merges = nn.ModuleList(), nn.ModuleList()
        for stage, dim in enumerate(config.dims):
            blocks = [_Block(config, stage, chances.pop(0)) for _ in range(config.depths[stage])]
            self.stages.append(nn.Sequential(*blocks))
            if stage + 1 < len(config.dims):
                self.merges.append(_convolution(dim, config.dims[stage + 1], 2))
        self.head = nn.Sequential(
            nn.Conv2d(config.dims[-1], config.head_dim, 1),
            nn.BatchNorm2d(config.head_dim),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(config.head_dim, config.num_classes, 1),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the linear layers from N(0, 0.02²) and zero their biases; convolutions keep torch's initialisation."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of ``images`` (B, channels, height, width)."""
        smallest = self.config.stem_stride * 2 ** (len(self.config.dims) - 1)
        if images.ndim != 4 or images.shape[1] != self.config.channels or min(images.shape[2:]) < smallest:
            raise ArgumentValueError(
                f"images must have shape (batch, {self.config.channels}, height, width) of at least {smallest} pixels, "
                f"got {tuple(images.shape)}"
            )
        x = self.stem(images)
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else self.merges[index - 1](x))
        return self.head(x).flatten(1)


class SoftmaxMapAttention(MapAttention):
    """Softmax attention with the same projection, gate and LePE; positions turn queries and keys."""

    def mix(
        self,
        q_BHTD: Tensor,
        k_BHTD: Tensor,
        v_BHTD: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        key_padding_mask: Tensor | None,
    ) -> Tensor:
        """The heads' outputs (B, H, T, D)."""
        if rope is not None:
            q_BHTD, k_BHTD = (turn_pairs(x, *rope).to(x.dtype) for x in (q_BHTD, k_BHTD))
        mask = None if key_padding_mask is None else key_padding_mask[:, None, None]
        return scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, mask)


class _Block(nn.Module):
    def __init__(self, config: NaLaFormerConfig, stage: int, drop_path: float) -> None:
        super().__init__()
        dim, heads = config.dims[stage], config.num_heads[stage]
        self.positions = nn.ModuleList(_depthwise(dim) for _ in range(2))
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        if config.attention[stage] == "linear":
            self.attention: MapAttention = NormAwareLinearAttention(dim, heads, **config.attention_options)
        else:
            self.attention = SoftmaxMapAttention(dim, heads)
        self.mlp = _FeedForward(dim, int(config.mlp_ratio * dim))
        self.scales = nn.ParameterList(nn.Parameter(torch.full((dim,), config.layer_scale)) for _ in range(2))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = x + self.positions[0](x)
        tokens = x.flatten(2).mT
        tokens = tokens + self._residual(0, self.attention(self.attention_norm(tokens), height, width))
        x = tokens.mT.unflatten(-1, (height, width))
        x = x + self.positions[1](x)
        tokens = x.flatten(2).mT
        tokens = tokens + self._residual(1, self.mlp(self.mlp_norm(tokens), height, width))
        return tokens.mT.unflatten(-1, (height, width))

    def _residual(self, index: int, branch: Tensor) -> Tensor:
        """Scaled; while training left out for some samples, and larger for the others."""
        branch = self.scales[index] * branch
        if not self.training or self.drop_path == 0.0:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * kept / (1.0 - self.drop_path)


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w_in, self.w_out = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.local = _depthwise(hidden)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        hidden = gelu(self.w_in(tokens))
        hidden = hidden + self.local(hidden.mT.unflatten(-1, (height, width))).flatten(2).mT
        return self.w_out(hidden)


def _depthwise(dim: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim)


def _convolution(source: int, target: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(source, target, 3, stride, 1, bias=False), nn.BatchNorm2d(target))


def _stem(channels: int, dim: int, stride: int) -> nn.Sequential:
    """Four 3 x 3 convolutions, of stride 2 first and, for stride 4, third."""
    half = max(dim // 2, 1)
    return nn.Sequential(
        _convolution(channels, half, 2), nn.GELU(),
        _convolution(half, half, 1), nn.GELU(),
        _convolution(half, dim, 2 if stride == 4 else 1), nn.GELU(),
        _convolution(dim, dim, 1),
    )  # fmt: skip
