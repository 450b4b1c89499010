"""A small sigmoid gate per head and token that sees the head's own slice of the input, and attention with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_number
from softgate._math.masks import accumulation_dtype
from softgate.attention.cache import KVCache
from softgate.attention.multihead import BaseAttention
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice

__all__ = ["HeadGate", "HeadGatedAttention"]

GateKind = Literal["linear", "mlp", "mlp2", "all_features", "per_head", "unconditional"]

_KINDS = ("linear", "mlp", "mlp2", "all_features", "per_head", "unconditional")
#: Spread of the last layer's weights when a trained model gets gates: nearly, but not exactly, constant gates.
_FINE_TUNE_STD = 0.01


class HeadGate(nn.Module):
    r"""Gate ``σ(G_h(x_h))``, one scalar per head and token; multiply each head's output by it.

    ``x_h`` is the h-th of H equal slices of the features of the attention block's input, not a projection of it. Kinds
    and their numbers of parameters, with d = embed_dim / H:

    ==================  ==================================================================  ==============
    ``"linear"``        a ``Linear(d, 1)`` for each head                                    H (d + 1)
    ``"mlp"``           ``Linear(d, hidden_dim)``, ReLU, ``Linear(·, 1)`` for each head     about H d² / 4
    ``"mlp2"``          the same with d hidden units                                        about H d²
    ``"all_features"``  one ``Linear(embed_dim, H)`` over all features                      H (embed_dim + 1)
    ``"per_head"``      logits of ``"linear"`` averaged over the tokens, then the sigmoid   H (d + 1)
    ``"unconditional"`` one learned logit for each head, at first 0                         H
    ==================  ==================================================================  ==============

    ``"per_head"`` sees every token of the sequence, the future too, so it is for bidirectional attention.

    Args:
        embed_dim: width of the input.
        num_heads: H, a divisor of ``embed_dim``.
        kind: which G, see above.
        init: how far the gates are open at first, in (0, 1): sets the bias of ``"linear"`` and ``"per_head"`` (of every
            kind with ``fine_tune``).
        fine_tune: start as no gate at all: weights from N(0, 0.01²), and the gate is multiplied by ``1 / init``.
        hidden_dim: hidden units of ``"mlp"``, d / 4 if None.
        allow_leak: let ``"per_head"`` run with ``is_causal=True``.

    Shapes: (B, T, embed_dim) -> (B, H, T, 1), as (B, H, T, features) of attention needs it.

    Raises:
        ArgumentTypeError: wrong types.
        ArgumentValueError: sizes that do not fit, ``init`` outside (0, 1), or a causal call that would leak.

    Example:
        >>> import torch
        >>> gate = HeadGate(32, 4, "linear", init=0.25)
        >>> gate(torch.zeros(2, 5, 32)).shape, round(gate(torch.zeros(1, 1, 32)).mean().item(), 6)
        (torch.Size([2, 4, 5, 1]), 0.25)

    Paper: Quantizable Transformers, arXiv 2306.12929, section 4.2 (eq. 5-6) and appendix B.1.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kind: GateKind = "linear",
        init: float = 0.25,
        fine_tune: bool = False,
        *,
        hidden_dim: int | None = None,
        allow_leak: bool = False,
    ) -> None:
        super().__init__()
        slice_dim = _check_sizes(embed_dim, num_heads)
        check_choice("kind", kind, _KINDS)
        check_number("init", init, low=0.0, high=1.0, low_open=True, high_open=True)
        for name, flag in (("fine_tune", fine_tune), ("allow_leak", allow_leak)):
            if not isinstance(flag, bool):
                bad_type(name, flag, "a bool")
        self.embed_dim, self.num_heads, self.kind = embed_dim, num_heads, kind
        self.init, self.fine_tune, self.allow_leak = float(init), fine_tune, allow_leak
        hidden = _hidden_units(kind, slice_dim, hidden_dim)
        self.logit: nn.Parameter | None = None
        self.layers: nn.ModuleList | None = None
        if kind == "unconditional":
            self.logit = nn.Parameter(torch.zeros(num_heads))
        elif kind == "all_features":
            self.layers = nn.ModuleList([nn.Linear(embed_dim, num_heads)])
        elif hidden is None:
            self.layers = nn.ModuleList([_HeadwiseLinear(num_heads, slice_dim, 1)])
        else:
            first, last = _HeadwiseLinear(num_heads, slice_dim, hidden), _HeadwiseLinear(num_heads, hidden, 1)
            self.layers = nn.ModuleList([first, last])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as ``torch.nn.Linear`` does, with the bias and the fine-tuning start that ``init`` asks for."""
        opened = math.log(self.init / (1.0 - self.init))
        if self.logit is not None:
            nn.init.constant_(self.logit, opened if self.fine_tune else 0.0)
        if self.layers is None:
            return
        for layer in self.layers:
            layer.reset_parameters()  # type: ignore[operator]
        last: Any = self.layers[-1]
        if self.fine_tune:
            nn.init.normal_(last.weight, std=_FINE_TUNE_STD)
        if self.fine_tune or self.kind in ("linear", "per_head"):
            nn.init.constant_(last.bias, opened)

    def forward(self, hidden: Tensor, is_causal: bool = True) -> Tensor:
        """The factors of the heads' outputs.

        Args:
            hidden: (B, T, embed_dim), the attention block's input.
            is_causal: whether the attention is; only ``"per_head"`` minds.

        Returns:
            (B, H, T, 1), in float32 for 16-bit inputs; between 0 and 1, or 0 and ``1 / init`` with ``fine_tune``.
        """
        self.check_leak(is_causal)
        check_float_tensor("hidden", hidden)
        if hidden.ndim != 3 or hidden.shape[-1] != self.embed_dim:
            raise ArgumentValueError(
                f"hidden must have shape (batch, length, {self.embed_dim}), got {tuple(hidden.shape)}"
            )
        logits_BTH = self._logits(hidden)
        gate_BTH = torch.sigmoid(logits_BTH.to(accumulation_dtype(logits_BTH.dtype)))
        if self.fine_tune:
            gate_BTH = gate_BTH / self.init
        return gate_BTH.transpose(1, 2).unsqueeze(-1)

    def _logits(self, hidden: Tensor) -> Tensor:
        batch, length, _ = hidden.shape
        if self.layers is None:
            assert self.logit is not None
            return self.logit.expand(batch, length, self.num_heads)
        if self.kind == "all_features":
            logits: Tensor = self.layers[0](hidden)
            return logits
        x_BTHN = hidden.unflatten(-1, (self.num_heads, -1))
        for index, layer in enumerate(self.layers):
            x_BTHN = layer(x_BTHN.relu() if index else x_BTHN)
        logits_BTH = x_BTHN.squeeze(-1)
        if self.kind == "per_head":
            return logits_BTH.mean(1, keepdim=True).expand(batch, length, self.num_heads)
        return logits_BTH

    def check_leak(self, is_causal: bool) -> None:
        """Raise if the gate of an early token would depend on later ones in causal attention."""
        if not isinstance(is_causal, bool):
            bad_type("is_causal", is_causal, "a bool")
        if is_causal and self.kind == "per_head" and not self.allow_leak:
            raise ArgumentValueError(
                "is_causal must be False with kind='per_head', whose gate averages over all tokens and so leaks the "
                "future (allow_leak=True permits it), got True"
            )

    def extra_repr(self) -> str:
        """Show the kind and the start."""
        return f"{self.embed_dim}, {self.num_heads}, kind={self.kind!r}, init={self.init}, fine_tune={self.fine_tune}"


class HeadGatedAttention(BaseAttention):
    """Multi-head attention, each head's output multiplied by a :class:`HeadGate` before concatenation.

    Combine it with any attention function: the paper gates softmax attention. Weights start from N(0, 0.02²), the
    gates as :class:`HeadGate` says.

    Args:
        embed_dim: width of the hidden states.
        num_heads: query heads H; ``embed_dim`` must be a multiple of it.
        num_kv_heads: key/value heads G, H if None.
        head_dim: features per head, embed_dim / H if None.
        gate: kind of the gate.
        gate_options: further arguments of :class:`HeadGate`, e.g. ``{"init": 0.5, "fine_tune": True}``.
        **options: further arguments of :class:`softgate.attention.MultiHeadAttention`.

    Shapes: (B, T, embed_dim) -> (B, T, embed_dim).

    Raises:
        ArgumentTypeError: wrong types.
        ArgumentValueError: sizes that do not fit; ``gate="per_head"`` in a causal call or with a cache.

    Example:
        >>> import torch
        >>> layer = HeadGatedAttention(32, 4, gate="mlp", rope=10000.0)
        >>> layer(torch.randn(2, 5, 32)).shape
        torch.Size([2, 5, 32])

    Paper: Quantizable Transformers, arXiv 2306.12929, section 4.2.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        gate: GateKind = "linear",
        gate_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(embed_dim, num_heads, num_kv_heads, head_dim, **options)
        self.gate = HeadGate(embed_dim, num_heads, gate, **dict(gate_options or {}))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projections from N(0, 0.02²) and start the gates anew."""
        super().reset_parameters()
        self.gate.reset_parameters()

    def forward(
        self,
        hidden: Tensor,
        *,
        attn_mask: Tensor | None = None,
        is_causal: bool = True,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Attend as :class:`softgate.attention.MultiHeadAttention` does; the gates see ``hidden``."""
        self.gate.check_leak(is_causal)
        if cache is not None and self.gate.kind == "per_head":
            raise ArgumentValueError("cache must be None with gate='per_head', which averages over the whole sequence")
        return super().forward(
            hidden, attn_mask=attn_mask, is_causal=is_causal, cache=cache, positions=positions, context=context
        )

    def _map_output(self, y_BHTD: Tensor, hidden: Tensor) -> Tensor:
        return (y_BHTD * self.gate(hidden, is_causal=False)).to(y_BHTD.dtype)  # forward has checked for a leak

    @torch.no_grad()
    def gate_scores(self, hidden: Tensor) -> Tensor:
        """The gates' scores (B, H, T, 1) for ``hidden`` (B, T, embed_dim), for looking at."""
        scores: Tensor = self.gate(hidden, is_causal=False)
        return scores


class _HeadwiseLinear(nn.Module):
    """A linear map for each head: (…, H, in) -> (…, H, out), started as H separate ``torch.nn.Linear``."""

    def __init__(self, heads: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(heads, out_features))

    def reset_parameters(self) -> None:
        bound = 1.0 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...hi,hoi->...ho", x, self.weight) + self.bias


def _check_sizes(embed_dim: Any, num_heads: Any) -> int:
    """Width of a head's slice, after checking that both sizes are positive ints that fit."""
    for name, size in (("embed_dim", embed_dim), ("num_heads", num_heads)):
        if isinstance(size, bool) or not isinstance(size, int):
            raise ArgumentTypeError(f"{name} must be a positive int, got {type(size).__name__}")
        if size < 1:
            bad_value(name, size, "a positive int")
    if embed_dim % num_heads:
        bad_value("embed_dim", embed_dim, f"a multiple of num_heads={num_heads}")
    return embed_dim // num_heads


def _hidden_units(kind: str, slice_dim: int, hidden_dim: Any) -> int | None:
    """Hidden units of the gate's network, None if it is linear."""
    if hidden_dim is not None and kind != "mlp":
        bad_value("hidden_dim", hidden_dim, f"None with kind={kind!r}: only 'mlp' has a width to choose")
    if kind == "mlp2":
        return slice_dim
    if kind != "mlp":
        return None
    if hidden_dim is None:
        if slice_dim < 4:
            raise ArgumentValueError(
                f"embed_dim must give at least 4 features per head for kind='mlp' (or set hidden_dim), got {slice_dim}"
            )
        return slice_dim // 4
    if isinstance(hidden_dim, bool) or not isinstance(hidden_dim, int):
        bad_type("hidden_dim", hidden_dim, "a positive int or None")
    if hidden_dim < 1:
        bad_value("hidden_dim", hidden_dim, "a positive int or None")
    return hidden_dim
