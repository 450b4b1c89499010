"""Patch embeddings of spiking networks: with max-pooling, which keeps high frequencies, and those it is compared with.

All keep real membrane values on their way: a layer is LIF neurons, a convolution, batch norm and, in those with "Max",
a 3 x 3 max-pool of stride 2. Maps are (T, B, C, H, W), time first.
"""

from __future__ import annotations

from torch import Tensor, nn

from softgate._checks import check_sizes
from softgate.activations.spiking import LIF
from softgate.errors import bad_value
from softgate.models._spiking_convolution import check_maps, per_step, plane

__all__ = ["Embed1Max", "EmbedMax", "EmbedMaxPlus", "EmbedOrig", "EmbedOrigImageNet", "EmbedOrigLater"]


class _Layer(nn.Module):
    """LIF neurons (unless the input is spikes already), convolution, batch norm, and a max-pool if ``pooled``."""

    def __init__(
        self, in_dim: int, dim: int, kernel: int, stride: int = 1, *, pooled: bool = False, on_spikes: bool = False
    ) -> None:
        super().__init__()
        self.neurons = nn.Identity() if on_spikes else LIF()
        self.embed = plane(in_dim, dim, kernel, stride)
        self.pool = nn.MaxPool2d(3, 2, 1) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(self.neurons(x))
        return x if self.pool is None else per_step(self.pool, x)


class _Embedding(nn.Module):
    #: How much smaller the map becomes.
    stride = 2
    #: ``dim`` must be a multiple of it.
    parts = 1

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        check_sizes(in_dim=in_dim, dim=dim)
        if dim % self.parts:
            bad_value("dim", dim, f"a multiple of {self.parts}")
        self.in_dim, self.dim = in_dim, dim

    def forward(self, x: Tensor) -> Tensor:
        """Membrane values (T, B, dim, H / stride, W / stride) of ``x`` (T, B, in_dim, H, W)."""
        check_maps(x, self.in_dim)
        if x.shape[3] % self.stride or x.shape[4] % self.stride:
            bad_value("x", tuple(x.shape), f"of height and width that {self.stride} divides")
        return self._embed(x)

    def _embed(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class EmbedOrig(_Embedding):
    """First stage for small images: a 3 x 3 convolution to half the width, then a 3 x 3 and a 1 x 1 layer, added.

    Args:
        in_dim: channels of the images.
        dim: channels of the result, even.

    Shapes: (T, B, in_dim, H, W) -> (T, B, dim, H, W).

    Raises:
        ArgumentValueError: sizes that do not fit.

    Paper: Max-Former, arXiv 2505.18608, Embed-Orig of stage 1.
    """

    stride, parts = 1, 2

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(in_dim, dim)
        self.proj = plane(in_dim, dim // 2, 3)
        self.embed1, self.embed2 = _Layer(dim // 2, dim, 3), _Layer(dim // 2, dim, 1)

    def _embed(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return self.embed1(x) + self.embed2(x)


class EmbedOrigImageNet(_Embedding):
    """First stage for large images: two 3 x 3 convolutions of stride 2 and one of stride 1, beside a 1 x 1 skip.

    Args:
        in_dim: channels of the images.
        dim: channels of the result, even.

    Shapes: (T, B, in_dim, H, W) -> (T, B, dim, H / 4, W / 4).

    Raises:
        ArgumentValueError: sizes that do not fit.

    Paper: arXiv 2505.18608, Embed-Orig of ImageNet.
    """

    stride, parts = 4, 2

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(in_dim, dim)
        self.proj, self.neurons = plane(in_dim, dim // 2, 3, 2), LIF()
        self.embed1, self.embed2 = _Layer(dim // 2, dim, 3, 2, on_spikes=True), _Layer(dim, dim, 3)
        self.skip = _Layer(dim // 2, dim, 1, 2, on_spikes=True)

    def _embed(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.proj(x))
        return self.embed2(self.embed1(spikes)) + self.skip(spikes)


class EmbedMax(_Embedding):
    """Later stage that halves the map by max-pooling: a pooled 3 x 3 layer and another one, beside a pooled 1 x 1 skip.

    Both ways start from the same spikes.

    Args:
        in_dim: channels before.
        dim: channels of the result; twice ``in_dim`` in the paper.

    Shapes: (T, B, in_dim, H, W) -> (T, B, dim, H / 2, W / 2).

    Raises:
        ArgumentValueError: sizes that do not fit.

    Example:
        >>> import torch
        >>> EmbedMax(4, 8)(torch.randn(2, 3, 4, 6, 6)).shape
        torch.Size([2, 3, 8, 3, 3])

    Paper: arXiv 2505.18608, Embed-Max of stages 2 and 3.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(in_dim, dim)
        self.neurons = LIF()
        self.max_embed1, self.embed1 = _Layer(in_dim, dim, 3, pooled=True, on_spikes=True), _Layer(dim, dim, 3)
        self.max_embed2 = _Layer(in_dim, dim, 1, pooled=True, on_spikes=True)

    def _embed(self, x: Tensor) -> Tensor:
        spikes = self.neurons(x)
        return self.embed1(self.max_embed1(spikes)) + self.max_embed2(spikes)


class EmbedOrigLater(_Embedding):
    """Later stage without pooling, for comparison: strides halve the map; see :class:`EmbedMax`."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(in_dim, dim)
        self.neurons = LIF()
        self.embed1, self.orig_embed1 = _Layer(in_dim, dim, 3, on_spikes=True), _Layer(dim, dim, 3, 2)
        self.embed2 = _Layer(in_dim, dim, 1, 2, on_spikes=True)

    def _embed(self, x: Tensor) -> Tensor:
        spikes = self.neurons(x)
        return self.orig_embed1(self.embed1(spikes)) + self.embed2(spikes)


class Embed1Max(_Embedding):
    """Later stage of QKFormer, for comparison: one max-pool, and a skip with a stride; see :class:`EmbedMax`."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(in_dim, dim)
        self.neurons = LIF()
        self.embed1, self.max_embed1 = _Layer(in_dim, dim, 3, on_spikes=True), _Layer(dim, dim, 3, pooled=True)
        self.embed2 = _Layer(in_dim, dim, 1, 2, on_spikes=True)

    def _embed(self, x: Tensor) -> Tensor:
        spikes = self.neurons(x)
        return self.max_embed1(self.embed1(spikes)) + self.embed2(spikes)


class EmbedMaxPlus(_Embedding):
    """First stage for event cameras: a convolution, three pooled layers, and a skip of stride 4 past the last two.

    Args:
        in_dim: channels of the events, 2 for their two polarities.
        dim: channels of the result, a multiple of 8.

    Shapes: (T, B, in_dim, H, W) -> (T, B, dim, H / 8, W / 8).

    Raises:
        ArgumentValueError: sizes that do not fit.

    Paper: arXiv 2505.18608, Embed-Max+.
    """

    stride, parts = 8, 8

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(in_dim, dim)
        self.proj, self.neurons = plane(in_dim, dim // 8, 3), LIF()
        self.max_embed1 = _Layer(dim // 8, dim // 4, 3, pooled=True)
        self.max_embed2 = _Layer(dim // 4, dim // 2, 3, pooled=True, on_spikes=True)
        self.max_embed3 = _Layer(dim // 2, dim, 3, pooled=True)
        self.embed1 = _Layer(dim // 4, dim, 1, 4, on_spikes=True)

    def _embed(self, x: Tensor) -> Tensor:
        spikes = self.neurons(self.max_embed1(self.proj(x)))
        return self.max_embed3(self.max_embed2(spikes)) + self.embed1(spikes)
