"""Attention layers with a state expansion of their own: linear, normalised, and softmax for comparison."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softgate._checks import check_number
from softgate._math.masks import accumulation_dtype, key_padding_mask, without_autocast
from softgate.attention.gated import gated_attention
from softgate.attention.mixers.base import CausalMixer, MixerState, check_sizes, heads_of, only_kept
from softgate.attention.separable.features import LOGIT_LIMIT, READ_OUTS, FeatureMap, feature_function
from softgate.attention.separable.forms import nonzero, recur
from softgate.errors import ArgumentValueError, bad_value, check_choice

__all__ = ["LinearAttention", "NormalizedAttention", "SoftmaxMixer"]


class _AttentionMixer(CausalMixer):
    """Projections to queries and keys of ``state_dim`` features and to values of ``dim``, all heads together."""

    def __init__(
        self, dim: int, state_dim: int | None, num_heads: int, num_kv_heads: int | None, *, bias: bool = True
    ) -> None:
        super().__init__(dim)
        state_dim = dim if state_dim is None else state_dim
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_sizes(state_dim=state_dim, num_heads=num_heads, num_kv_heads=num_kv_heads)
        for name, size in (("state_dim", state_dim), ("dim", dim)):
            if size % num_heads:
                bad_value(name, size, f"a multiple of num_heads={num_heads}")
        if num_heads % num_kv_heads:
            bad_value("num_kv_heads", num_kv_heads, f"a divisor of num_heads={num_heads}")
        self.state_dim, self.num_heads, self.num_kv_heads = state_dim, num_heads, num_kv_heads
        self.q_proj = nn.Linear(dim, state_dim, bias=bias)
        self.k_proj = nn.Linear(dim, state_dim // num_heads * num_kv_heads, bias=bias)
        self.v_proj = nn.Linear(dim, dim // num_heads * num_kv_heads, bias=bias)
        self.o_proj = nn.Linear(dim, dim, bias=bias)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        groups = self.num_kv_heads
        q_BHTN = heads_of(self.q_proj(x), self.num_heads)
        return q_BHTN, heads_of(self.k_proj(x), groups), heads_of(self.v_proj(x), groups)

    def extra_repr(self) -> str:
        """Show the sizes."""
        heads = f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}"
        return f"dim={self.dim}, state_dim={self.state_dim}, {heads}"


class _StateAttention(_AttentionMixer):
    """Separable attention; the state of a head is Σ_j φ(k_j) v_jᵀ, the values first extended by ``_extend``."""

    feature_map: FeatureMap

    def _mix(self, x: Tensor, state: MixerState | None, keep: Tensor | None) -> tuple[Tensor, MixerState]:
        q, k, v = self._project(x)
        dtype = accumulation_dtype(q.dtype)
        apply = feature_function(self.feature_map)
        with without_autocast(q):
            q_BHTN, k_BGTN, v_BGTD = apply(q.to(dtype)), apply(k.to(dtype)), self._extend(v.to(dtype))
            k_BGTN = only_kept(k_BGTN.transpose(1, 2), keep).transpose(1, 2)
            if state is None:
                state = (k_BGTN.new_zeros(*k_BGTN.shape[:2], k_BGTN.shape[-1], v_BGTD.shape[-1]),)
            q_BGRTN = q_BHTN.unflatten(1, (self.num_kv_heads, -1))
            y_BGRTD, last = recur(q_BGRTN, k_BGTN, v_BGTD, None, state[0])
            y_BHTD = self._read_out(y_BGRTD.flatten(1, 2), x)
        return self.o_proj(y_BHTD.to(x.dtype).transpose(1, 2).flatten(2)), (last,)

    def _extend(self, v_BGTD: Tensor) -> Tensor:
        return v_BGTD

    def _read_out(self, y_BHTD: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class LinearAttention(_StateAttention):
    """Multi-head causal linear attention with a constant-size state, see :func:`softgate.attention.linear_attention`.

    Args:
        dim: width of the hidden states.
        state_dim: features of the queries of all heads together, dim if None; each head's state is state_dim /
            num_heads by dim / num_heads numbers (and as many row sums).
        num_heads: query heads; must divide dim and state_dim.
        num_kv_heads: key/value heads, each with a state that its group of query heads shares; num_heads if None.
        feature_map: ``"elu"`` or another of :func:`softgate.attention.linear_attention`.
        eps: added to the row sums.
        bias: biases of the projections.

    Raises:
        ArgumentValueError: sizes that do not fit.
        ArgumentTypeError: wrong types.

    Example:
        >>> import torch
        >>> layer = LinearAttention(8, state_dim=4)
        >>> start, state = layer(torch.zeros(1, 5, 8), return_state=True)
        >>> layer(torch.zeros(1, 1, 8), state).shape
        torch.Size([1, 1, 8])

    Paper: arXiv 2405.15731, section 3.
    """

    def __init__(
        self,
        dim: int,
        state_dim: int | None = None,
        num_heads: int = 1,
        *,
        num_kv_heads: int | None = None,
        feature_map: FeatureMap = "elu",
        eps: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__(dim, state_dim, num_heads, num_kv_heads, bias=bias)
        feature_function(feature_map)
        self.feature_map, self.eps = feature_map, check_number("eps", eps, low=0.0, high_open=True)
        self.reset_parameters()

    def _extend(self, v_BGTD: Tensor) -> Tensor:
        return F.pad(v_BGTD, (0, 1), value=1.0)  # the last column of the state becomes Σ_j φ(k_j)

    def _read_out(self, y_BHTD: Tensor, x: Tensor) -> Tensor:
        return y_BHTD[..., :-1] / nonzero(y_BHTD[..., -1:] + self.eps)


class NormalizedAttention(_StateAttention):
    """Linear attention divided by a learned function of the token, see :func:`softgate.attention.normalized_attention`.

    Args:
        dim: width of the hidden states.
        state_dim: features of the queries of all heads together, dim if None.
        num_heads: query heads; must divide dim and state_dim.
        norm: η(n) of the learned logit n, one per head and token: ``"exp"``, ``"softplus"`` or ``"sigmoid"``.
        feature_map: of queries and keys; None is the identity, as in the paper.
        num_kv_heads: key/value heads, num_heads if None.
        bias: biases of the projections.

    Attributes:
        clamped: how many logits were clamped at the bounds of ``norm`` while training; a growing number says that η
            wants to leave the range of float32.

    Example:
        >>> import torch
        >>> NormalizedAttention(8, state_dim=4, norm="softplus")(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])

    Paper: arXiv 2405.15731, section 4.
    """

    clamped: Tensor

    def __init__(
        self,
        dim: int,
        state_dim: int | None = None,
        num_heads: int = 1,
        norm: str = "exp",
        feature_map: FeatureMap | None = None,
        *,
        num_kv_heads: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__(dim, state_dim, num_heads, num_kv_heads, bias=bias)
        check_choice("norm", norm, tuple(READ_OUTS))
        self.feature_map, self.norm = "identity" if feature_map is None else feature_map, norm
        feature_function(self.feature_map)
        self.eta_proj = nn.Linear(dim, num_heads)
        self.register_buffer("clamped", torch.zeros((), dtype=torch.long), persistent=False)
        self.reset_parameters()

    def _read_out(self, y_BHTD: Tensor, x: Tensor) -> Tensor:
        logits = self.eta_proj(x.to(self.eta_proj.weight.dtype)).to(y_BHTD.dtype).transpose(1, 2)[..., None]
        if self.training:
            outside = logits.detach() < -LOGIT_LIMIT
            if self.norm == "exp":
                outside = outside | (logits.detach() > LOGIT_LIMIT)
            self.clamped += outside.sum()
        return y_BHTD * READ_OUTS[self.norm](logits)


class SoftmaxMixer(_AttentionMixer):
    """Causal softmax attention with queries of ``state_dim`` features: what the other mixers are compared with.

    Its state, the keys and values of all tokens, grows with the sequence.

    Args:
        dim: width of the hidden states.
        state_dim: features of the queries of all heads together, dim if None.
        num_heads: query heads; must divide dim and state_dim.
        num_kv_heads: key/value heads, num_heads if None.
        bias: biases of the projections.

    Example:
        >>> import torch
        >>> SoftmaxMixer(8, state_dim=4)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])

    Paper: arXiv 2405.15731, section 3.
    """

    def __init__(
        self,
        dim: int,
        state_dim: int | None = None,
        num_heads: int = 1,
        *,
        num_kv_heads: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__(dim, state_dim, num_heads, num_kv_heads, bias=bias)
        self.reset_parameters()

    def _mix(self, x: Tensor, state: MixerState | None, keep: Tensor | None) -> tuple[Tensor, MixerState]:
        q, k, v = self._project(x)
        if keep is None:
            keep = x.new_ones(x.shape[:2], dtype=torch.bool)
        if state is not None:
            if len(state) != 3:
                raise ArgumentValueError(f"state must be (keys, values, keep), got {len(state)} tensors")
            k, v, keep = (torch.cat(pair, -1 - (pair[0].ndim == 4)) for pair in zip(state, (k, v, keep), strict=True))
        gqa = self.num_heads != self.num_kv_heads
        y_BHTD = gated_attention(q, k, v, None, key_padding_mask(keep), is_causal=True, enable_gqa=gqa)
        return self.o_proj(y_BHTD.transpose(1, 2).flatten(2)), (k, v, keep)
