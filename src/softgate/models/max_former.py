"""Max-Former: a spiking transformer with max-pooling between stages and convolutions in place of early attention."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_sizes
from softgate.activations.spiking import LIF
from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice
from softgate.models.spiking_embeds import (
    Embed1Max,
    EmbedMax,
    EmbedMaxPlus,
    EmbedOrig,
    EmbedOrigImageNet,
    EmbedOrigLater,
)
from softgate.models.spiking_mixers import (
    DepthwiseMixer,
    PoolMixer,
    SpikingMLP,
    SpikingSelfAttention,
    TokenQKAttention,
)

__all__ = [
    "MaxFormer",
    "MaxFormerConfig",
    "max_former_10_384",
    "max_former_10_512",
    "max_former_10_768",
    "max_former_cifar",
    "max_former_event",
    "rename_released_max_former",
]

_INIT_STD = 0.02
_FIRST = {"orig": EmbedOrig, "orig_imagenet": EmbedOrigImageNet, "max_plus": EmbedMaxPlus}
_LATER = {"max": EmbedMax, "1max": Embed1Max, "orig": EmbedOrigLater}
#: Name -> the mixer of a stage, made from its channels and heads.
_MIXERS: dict[str, Callable[[int, int], nn.Module]] = {
    "identity": lambda dim, heads: nn.Identity(),
    "dwc3": lambda dim, heads: DepthwiseMixer(dim, 3),
    "dwc5": lambda dim, heads: DepthwiseMixer(dim, 5),
    "dwc7": lambda dim, heads: DepthwiseMixer(dim, 7),
    "max": lambda dim, heads: PoolMixer("max"),
    "avg": lambda dim, heads: PoolMixer("avg"),
    "ssa": SpikingSelfAttention,
    "qk": TokenQKAttention,
}


@dataclass(frozen=True)
class MaxFormerConfig:
    """Sizes and parts of a :class:`MaxFormer`; the defaults are those of the paper for CIFAR-10.

    Attributes:
        dim: channels of the last stage; every stage before has half as many.
        embeds: what begins each stage: first ``"orig"``, ``"orig_imagenet"`` or ``"max_plus"`` (events), then
            ``"max"``, ``"1max"`` or ``"orig"``.
        mixers: of each stage: ``"identity"``, ``"dwc3"``, ``"dwc5"``, ``"dwc7"``, ``"max"``, ``"avg"``, ``"ssa"``
            (spiking self-attention) or ``"qk"``.
        depths: blocks of each stage.
        heads: of attention, in every stage that has it.
        mlp_ratio: hidden channels of the feed-forward layers over those of the stage.
        steps: how often an image is shown; events bring their own number of steps.
        channels: of the images, or of the events.
        num_classes: outputs.
        conv_init: ``"default"``, torch's own start of convolutions, or ``"trunc_normal"`` with deviation 0.02.
    """

    dim: int = 384
    embeds: tuple[str, ...] = ("orig", "max", "max")
    mixers: tuple[str, ...] = ("identity", "dwc3", "ssa")
    depths: tuple[int, ...] = (1, 1, 2)
    heads: int = 8
    mlp_ratio: int = 4
    steps: int = 4
    channels: int = 3
    num_classes: int = 10
    conv_init: str = "default"

    def __post_init__(self) -> None:
        check_sizes(
            dim=self.dim, heads=self.heads, mlp_ratio=self.mlp_ratio, steps=self.steps, channels=self.channels,
            num_classes=self.num_classes,
        )  # fmt: skip
        for name in ("embeds", "mixers", "depths"):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                bad_type(name, value, "a tuple with an entry for each stage")
            if not value or len(value) != len(self.embeds):
                bad_value(name, value, f"of {len(self.embeds)} entries, one for each stage, and of at least one")
        for index, (embed, mixer, depth) in enumerate(zip(self.embeds, self.mixers, self.depths, strict=True)):
            check_choice("embeds", embed, tuple(_LATER if index else _FIRST))
            check_choice("mixers", mixer, tuple(_MIXERS))
            check_sizes(depths=depth)
        if self.dim % 2 ** (len(self.embeds) - 1):
            bad_value("dim", self.dim, f"a multiple of {2 ** (len(self.embeds) - 1)}, to be halved from stage to stage")
        check_choice("conv_init", self.conv_init, ("default", "trunc_normal"))

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage."""
        last = len(self.embeds) - 1
        return tuple(self.dim // 2 ** (last - index) for index in range(last + 1))

    @property
    def stride(self) -> int:
        """By how much the map of the last stage is smaller than the image."""
        return _FIRST[self.embeds[0]].stride * 2 ** (len(self.embeds) - 1)


class MaxFormer(nn.Module):
    """Spiking transformer of stages: an embedding, then blocks of a token mixer and a feed-forward layer.

    All neurons are LIF; what goes from layer to layer is the membrane, convolutions see spikes only. The classifier
    reads the mean over steps of the spikes of the mean over the map.

    Args:
        config: sizes and parts; those for CIFAR-10 if None.
        **options: fields of :class:`MaxFormerConfig` that replace those of ``config``.

    Shapes: images (B, channels, H, W), shown ``steps`` times, or events (B, T, channels, H, W) -> logits
        (B, num_classes).

    Raises:
        ArgumentTypeError: an option has the wrong type.
        ArgumentValueError: sizes or names that do not fit, or a height or width that the strides do not divide.

    Example:
        >>> import torch
        >>> model = MaxFormer(dim=16, depths=(1, 1, 1), steps=2)
        >>> model(torch.randn(3, 3, 8, 8)).shape
        torch.Size([3, 10])

    Paper: Spiking Neural Networks Need High Frequency Information, arXiv 2505.18608, sec. 4. Depths for ImageNet are
    those of the released code and of the model's name, 1, 2 and 7; the paper's table prints 1, 3, 7.
    """

    def __init__(self, config: MaxFormerConfig | None = None, **options: Any) -> None:
        super().__init__()
        self.config = config = replace(config or MaxFormerConfig(), **options)
        self.embeds, self.stages = nn.ModuleList(), nn.ModuleList()
        channels = config.channels
        for index, dim in enumerate(config.dims):
            kind = (_LATER if index else _FIRST)[config.embeds[index]]
            self.embeds.append(kind(channels, dim))
            blocks = (_Block(config, config.mixers[index], dim) for _ in range(config.depths[index]))
            self.stages.append(nn.Sequential(*blocks))
            channels = dim
        self.neurons = LIF()
        self.head = nn.Linear(config.dim, config.num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the classifier, and with ``conv_init="trunc_normal"`` all convolutions, with deviation 0.02."""
        every = self.config.conv_init == "trunc_normal"
        for module in self.modules():
            if isinstance(module, nn.Linear) or (every and isinstance(module, nn.Conv1d | nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        x = self.membranes(images)
        logits: Tensor = self.head(self.neurons(x.mean((3, 4))).mean(0))
        return logits

    def membranes(self, images: Tensor) -> Tensor:
        """Membrane values of the last stage, (T, B, dim, H / stride, W / stride)."""
        x = with_steps(images, self.config.channels, self.config.steps)
        stride = self.config.stride
        if x.shape[3] % stride or x.shape[4] % stride or 0 in x.shape[3:]:
            raise ArgumentValueError(
                f"images must have a height and width that {stride} divides, got {tuple(images.shape)}"
            )
        for embed, stage in zip(self.embeds, self.stages, strict=True):
            x = stage(embed(x))
        return x

    def num_parameters(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.parameters())


def with_steps(images: Tensor, channels: int, steps: int) -> Tensor:
    """Images (B, C, H, W) ``steps`` times, or events (B, T, C, H, W), with time first."""
    check_float_tensor("images", images)
    if images.ndim not in (4, 5) or images.shape[-3] != channels or 0 in images.shape[1:-2]:
        raise ArgumentValueError(
            f"images must have shape (batch, {channels}, height, width), or with steps (batch, steps, {channels}, "
            f"height, width), got {tuple(images.shape)}"
        )
    return images.expand(steps, *images.shape) if images.ndim == 4 else images.transpose(0, 1)


class _Block(nn.Module):
    def __init__(self, config: MaxFormerConfig, mixer: str, dim: int) -> None:
        super().__init__()
        self.mixer = _MIXERS[mixer](dim, config.heads)
        self.mlp = SpikingMLP(dim, config.mlp_ratio * dim)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mlp(self.mixer(x))
        return mixed


#: What is called otherwise in the released checkpoints.
_RENAMED = (
    (r"^module\.", ""),
    (r"patch_embed(\d+)\.", lambda m: f"embeds.{int(m[1]) - 1}."),
    (r"stage(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}."),
    (r"(^|\.)attn\.", r"\1mixer."),
    (r"(^|\.)conv\.(weight|bias)$", r"\1conv.conv.\2"),
    (r"(\w+)_conv\.", r"\1.conv."),
    (r"(\w+)_bn\.", r"\1.norm."),
)


def rename_released_max_former(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The released weights of a Max-Former under the names of :class:`MaxFormer`.

    Args:
        state: a released checkpoint as ``torch.load(file, weights_only=True)`` gives it: names -> tensors, or a
            dictionary with these under ``"state_dict"`` or ``"model"``.

    Returns:
        Names -> tensors for ``model.load_state_dict``. Checked are the CIFAR models and the embedding for events.

    Raises:
        ArgumentTypeError: ``state`` is no mapping.

    Example:
        >>> import torch
        >>> list(rename_released_max_former({"stage3.0.attn.q_conv.weight": torch.zeros(1)}))
        ['stages.2.0.mixer.q.conv.weight']
    """
    if not isinstance(state, Mapping):
        bad_type("state", state, "a mapping of names to tensors")
    for wrapper in ("state_dict", "model"):
        state = state.get(wrapper, state)
    renamed = {}
    for name, value in state.items():
        for pattern, new in _RENAMED:
            name = re.sub(pattern, new, name)  # type: ignore[arg-type]
        if isinstance(value, Tensor):
            renamed[name] = value
    return renamed


def _build(sizes: Mapping[str, Any], options: Mapping[str, Any]) -> MaxFormer:
    return MaxFormer(MaxFormerConfig(**{**sizes, **options}))


_IMAGENET: dict[str, Any] = {
    "embeds": ("orig_imagenet", "max", "max"),
    "mixers": ("dwc7", "dwc5", "ssa"),
    "depths": (1, 2, 7),
    "num_classes": 1000,
    "conv_init": "trunc_normal",
}


def max_former_cifar(**options: Any) -> MaxFormer:
    """Max-Former for 32 x 32 images (6.57M parameters with 10 classes); ``options`` as in :class:`MaxFormerConfig`."""
    return _build({}, options)


def max_former_10_384(**options: Any) -> MaxFormer:
    """Max-Former-10-384 for ImageNet: heads of 64 channels; ``options`` as in :class:`MaxFormerConfig`."""
    return _build({**_IMAGENET, "dim": 384, "heads": 6}, options)


def max_former_10_512(**options: Any) -> MaxFormer:
    """Max-Former-10-512 for ImageNet; see :func:`max_former_10_384`."""
    return _build({**_IMAGENET, "dim": 512, "heads": 8}, options)


def max_former_10_768(**options: Any) -> MaxFormer:
    """Max-Former-10-768 for ImageNet (64M parameters); see :func:`max_former_10_384`."""
    return _build({**_IMAGENET, "dim": 768, "heads": 12}, options)


def max_former_event(**options: Any) -> MaxFormer:
    """Max-Former for event cameras: two stages, 16 steps in the paper; ``options`` as in :class:`MaxFormerConfig`."""
    sizes = {
        "dim": 256, "embeds": ("max_plus", "max"), "mixers": ("dwc3", "ssa"), "depths": (1, 1), "heads": 16,
        "steps": 16, "channels": 2,
    }  # fmt: skip
    return _build(sizes, options)
