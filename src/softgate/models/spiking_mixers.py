"""Token mixers and feed-forward layers of spiking transformers. Maps are (T, B, C, H, W), time first."""

from __future__ import annotations

from torch import Tensor, nn

from softgate._checks import check_number, check_sizes
from softgate.activations.spiking import LIF
from softgate.errors import bad_value, check_choice
from softgate.models._spiking_convolution import ConvNorm, check_maps, per_step

__all__ = ["DepthwiseMixer", "PoolMixer", "SpikingMLP", "SpikingSelfAttention", "TokenQKAttention"]

_POOLS = ("max", "avg")
_ATTENTION_THRESHOLD = 0.5


class DepthwiseMixer(nn.Module):
    """``x + BN(DWConv(LIF(x)))``: a square filter for every channel.

    Args:
        dim: channels.
        kernel: side of the filters, odd.

    Shapes: (T, B, dim, H, W) -> the same.

    Raises:
        ArgumentValueError: sizes that do not fit.

    Paper: Max-Former, arXiv 2505.18608, DWC-N.
    """

    def __init__(self, dim: int, kernel: int = 3) -> None:
        super().__init__()
        check_sizes(dim=dim, kernel=kernel)
        if kernel % 2 == 0:
            bad_value("kernel", kernel, "odd")
        self.dim, self.neurons = dim, LIF()
        self.conv = ConvNorm(nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` and what its neighbours add."""
        check_maps(x, self.dim)
        mixed: Tensor = x + self.conv(self.neurons(x))
        return mixed


class PoolMixer(nn.Module):
    """Maximum or mean over 3 x 3 neighbours of the membrane values, with neither neurons nor a residual.

    Args:
        kind: ``"max"`` or ``"avg"``; the mean is that of the neighbours within the map.

    Shapes: (T, B, C, H, W) -> the same.

    Raises:
        ArgumentValueError: an unknown kind.

    Paper: arXiv 2505.18608, the mixers compared in tables 4 and 7.
    """

    def __init__(self, kind: str = "max") -> None:
        super().__init__()
        check_choice("kind", kind, _POOLS)
        self.kind = kind
        self.pool = nn.MaxPool2d(3, 1, 1) if kind == "max" else nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        """The pooled map."""
        return per_step(self.pool, x)


class _SpikingAttention(nn.Module):
    """Spikes of projections, cut into heads, mixed over tokens, thresholded and projected; added to the input."""

    projections: tuple[str, ...]

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        check_sizes(dim=dim, heads=heads)
        if dim % heads:
            bad_value("dim", dim, f"a multiple of heads={heads}")
        self.dim, self.heads = dim, heads
        self.neurons = LIF()
        for name in self.projections:
            self.add_module(name, ConvNorm(nn.Conv1d(dim, dim, 1, bias=False)))
            self.add_module(f"{name}_neurons", LIF())
        self.attention_neurons = LIF(v_threshold=_ATTENTION_THRESHOLD)
        self.proj = ConvNorm(nn.Conv1d(dim, dim, 1))

    def heads_of(self, spikes: Tensor, name: str) -> Tensor:
        """Spikes (T, B, heads, dim / heads, N) of one projection of ``spikes`` (T, B, dim, N)."""
        projected = self.get_submodule(name)(spikes)
        found: Tensor = self.get_submodule(f"{name}_neurons")(projected)
        return found.unflatten(2, (self.heads, -1))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` and what attention adds."""
        check_maps(x, self.dim)
        spikes = self.neurons(x.flatten(3))
        mixed = self.mix(*(self.heads_of(spikes, name) for name in self.projections)).flatten(2, 3)
        return x + self.proj(mixed).unflatten(-1, x.shape[3:])

    def mix(self, *spikes_TBHDN: Tensor) -> Tensor:
        """Spikes of the mixed tokens (T, B, heads, dim / heads, N)."""
        raise NotImplementedError


class SpikingSelfAttention(_SpikingAttention):
    """Self-attention of spikes, ``scale · q (kᵀ v)`` without softmax: linear in the number of tokens.

    Queries, keys and values are spikes, so that all products are whole numbers and may be taken in any order.

    Args:
        dim: channels.
        heads: number of heads.
        scale: factor before the neurons that follow, whose threshold is 0.5; the same for every size of heads.

    Shapes: (T, B, dim, H, W) -> the same.

    Raises:
        ArgumentValueError: ``dim`` is no multiple of ``heads``, or sizes that do not fit.

    Paper: arXiv 2505.18608, SSA; Spikformer, arXiv 2209.15425.
    """

    projections = ("q", "k", "v")

    def __init__(self, dim: int, heads: int, scale: float = 0.125) -> None:
        super().__init__(dim, heads)
        self.scale = check_number("scale", scale, low=0.0, low_open=True, high_open=True)

    def mix(self, *spikes_TBHDN: Tensor) -> Tensor:
        """Spikes of ``scale · q (kᵀ v)``, in the layout of channels before tokens."""
        q_TBHDN, k_TBHDN, v_TBHDN = spikes_TBHDN
        found: Tensor = self.attention_neurons(self.scale * ((v_TBHDN @ k_TBHDN.mT) @ q_TBHDN))
        return found


class TokenQKAttention(_SpikingAttention):
    """Attention that lets whole tokens pass: a token's keys stay where enough of its queries fire, head by head.

    Args:
        dim: channels.
        heads: number of heads.

    Shapes: (T, B, dim, H, W) -> the same.

    Raises:
        ArgumentValueError: ``dim`` is no multiple of ``heads``, or sizes that do not fit.

    Paper: the baseline of arXiv 2505.18608; QKFormer, arXiv 2403.16552.
    """

    projections = ("q", "k")

    def mix(self, *spikes_TBHDN: Tensor) -> Tensor:
        """Keys of the tokens whose queries, added, make a neuron of threshold 0.5 fire."""
        q_TBHDN, k_TBHDN = spikes_TBHDN
        found: Tensor = self.attention_neurons(q_TBHDN.sum(3, keepdim=True)) * k_TBHDN
        return found


class SpikingMLP(nn.Module):
    """Feed-forward layer: LIF, 1 x 1 convolution, batch norm, twice, added to the input.

    Args:
        dim: channels.
        hidden: channels between; where it equals ``dim``, the first half has a residual of its own.

    Shapes: (T, B, dim, H, W) -> the same.

    Raises:
        ArgumentValueError: sizes that do not fit.

    Paper: arXiv 2505.18608, S-MLP.
    """

    def __init__(self, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = 4 * dim if hidden is None else hidden
        check_sizes(dim=dim, hidden=hidden)
        self.dim, self.hidden = dim, hidden
        self.fc1_neurons, self.fc1 = LIF(), ConvNorm(nn.Conv2d(dim, hidden, 1))
        self.fc2_neurons, self.fc2 = LIF(), ConvNorm(nn.Conv2d(hidden, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` and what the layer adds."""
        check_maps(x, self.dim)
        hidden = self.fc1(self.fc1_neurons(x))
        if self.hidden == self.dim:
            hidden = hidden + x
        output: Tensor = x + self.fc2(self.fc2_neurons(hidden))
        return output
