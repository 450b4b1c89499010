"""Multi-head attention with a gate: every variant of the paper's Tables 1, 3 and 4 as one module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softgate.attention.cache import KVCache
from softgate.attention.gated import gated_attention
from softgate.attention.gated.reference import activation_function
from softgate.attention.multihead import BaseAttention, QKNorm, normalise
from softgate.attention.rotary import RotaryEmbedding
from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice

__all__ = ["GatedAttention"]

GatePosition = Literal["sdpa", "value", "key", "query", "output", "none"]
Granularity = Literal["elementwise", "headwise"]

_POSITIONS = ("sdpa", "value", "key", "query", "output", "none")
#: Parameter-free or nearly so: the map acts on the attention output itself and no gate is computed (Table 3).
_OUTPUT_MAPS = ("output_rms_norm", "output_silu")


class GatedAttention(BaseAttention):
    """Multi-head softmax attention with a gate at one of the paper's five positions, or none.

    For hidden states X (after the block's norm): ``O = concat_h(softmax(q kᵀ/√d) v ⊙ act(X W_θ)) W_O`` (position
    ``"sdpa"``, G1). With ``gate_position="none"`` the module is plain attention with the same parameters, so that a
    gated model and its baseline differ in the gate alone. Weights start from N(0, 0.02²), biases at 0, gates near 0.5.

    Args:
        embed_dim: width of the hidden states.
        num_heads: query heads H.
        num_kv_heads: key/value heads G, H if None; H must be a multiple of it.
        head_dim: features d per head, embed_dim / H if None.
        gate_position: ``"sdpa"`` output of attention (G1), ``"value"`` (G2), ``"key"`` (G3), ``"query"`` (G4),
            ``"output"`` after the output projection (G5), ``"none"``.
        granularity: ``"elementwise"`` (a gate per feature) or ``"headwise"`` (one per head).
        head_shared: average the scores of all heads and use the mean in each.
        multiplicative: False adds the score instead of multiplying by it.
        activation: ``"sigmoid"``, ``"ns_sigmoid"``, ``"silu"``, ``"identity"`` or a callable; for G1 also
            ``"output_rms_norm"`` and ``"output_silu"``, which replace the gate by a map of the attention output.
        input_dependent: False replaces X W_θ by learned logits that start at 0.
        qk_norm: ``"rms"`` (or True) or ``"layer"`` normalises queries and keys per head, before the rotation.
        rope: base of rotary positions (10000.0, …), a :class:`RotaryEmbedding` (which may turn a part of the features
            only), or None for none.
        bias: biases of all projections.
        attention: ``"softmax"``, the name of another function ``softgate.attention.<name>_attention``, or a callable
            with the signature of scaled_dot_product_attention, bottom-right causal.
        dropout: dropout of attention weights while training.

    Shapes: (B, T, embed_dim) -> (B, T, embed_dim).

    Raises:
        ArgumentValueError: sizes that do not fit, or a combination of options that the paper does not define.
        ArgumentTypeError: wrong types.

    Example:
        >>> import torch
        >>> layer = GatedAttention(32, 4, gate_position="sdpa", granularity="headwise", rope=10000.0)
        >>> layer(torch.randn(2, 5, 32)).shape
        torch.Size([2, 5, 32])

    Paper: arXiv 2505.06708, section 2.2, eq. 5; Tables 1, 3 and 4.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        gate_position: GatePosition = "sdpa",
        granularity: Granularity = "elementwise",
        head_shared: bool = False,
        multiplicative: bool = True,
        activation: str | Callable[[Tensor], Tensor] = "sigmoid",
        input_dependent: bool = True,
        qk_norm: QKNorm = False,
        rope: float | RotaryEmbedding | None = None,
        bias: bool = False,
        attention: str | Callable[..., Tensor] = "softmax",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            num_kv_heads,
            head_dim,
            attention=attention,
            qk_norm=qk_norm,
            rope=rope,
            bias=bias,
            dropout=dropout,
        )
        check_choice("gate_position", gate_position, _POSITIONS)
        check_choice("granularity", granularity, ("elementwise", "headwise"))
        flags = {"head_shared": head_shared, "multiplicative": multiplicative, "input_dependent": input_dependent}
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                bad_type(name, flag, "a bool")
        self.gate_position, self.granularity, self.activation = gate_position, granularity, activation
        self.head_shared, self.multiplicative, self.input_dependent = head_shared, multiplicative, input_dependent
        self.gate_proj: nn.Linear | None = None
        self.gate_logits: nn.Parameter | None = None
        self.output_norm: nn.RMSNorm | None = None
        self._make_gate(bias)
        self.reset_parameters()

    def _make_gate(self, bias: bool) -> None:
        """Create what the gate needs, after checking that the options define one."""
        if self.activation in _OUTPUT_MAPS:
            if self.gate_position != "sdpa" or self.head_shared or not (self.multiplicative and self.input_dependent):
                bad_value("activation", self.activation, "a gate activation; maps of the output only stand at 'sdpa'")
            if self.activation == "output_rms_norm":
                self.output_norm = nn.RMSNorm(self.head_dim, eps=1e-6)
            return
        activation_function(self.activation, "activation")
        if self.gate_position == "none":
            return
        if self.gate_position == "output":
            if self.granularity == "headwise" or self.head_shared:
                raise ArgumentValueError(
                    "gate_position='output' has no heads: granularity must be 'elementwise' and head_shared False, "
                    f"got {self.granularity!r} and {self.head_shared}"
                )
            heads, features = 1, self.embed_dim
        else:
            heads = self.num_kv_heads if self.gate_position in ("value", "key") else self.num_heads
            features = self.head_dim if self.granularity == "elementwise" else 1
        self._gate_shape = (heads, features)
        if self.input_dependent:
            self.gate_proj = nn.Linear(self.embed_dim, heads * features, bias=bias)
        else:
            self.gate_logits = nn.Parameter(torch.zeros(heads, features))

    def reset_parameters(self) -> None:
        """Draw all weights from N(0, 0.02²) and zero the biases and input-independent logits, as the paper does."""
        super().reset_parameters()
        if self.gate_logits is not None:
            nn.init.zeros_(self.gate_logits)

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
        """Attend from ``hidden`` to itself (and the cached tokens), or to ``context``; see :class:`BaseAttention`."""
        q_BHTD, k_BGSD, v_BGSD = self._project(hidden, cache, positions, context)
        masked: dict[str, Any] = {
            "attn_mask": attn_mask,
            "dropout_p": self.dropout if self.training else 0.0,
            "is_causal": is_causal,
            "enable_gqa": self.num_heads != self.num_kv_heads,
        }
        if self._gates_heads and self._fused:
            gate = self._logits(hidden)
            y_BHTD = gated_attention(q_BHTD, k_BGSD, v_BGSD, gate, gate_activation=self.activation, **masked)  # type: ignore[arg-type]
        else:
            y_BHTD = self._map_output(self._attend(q_BHTD, k_BGSD, v_BGSD, **masked), hidden)
        out = self.o_proj(y_BHTD.transpose(1, 2).flatten(2))
        if self.gate_position == "output":
            out = self._apply_gate(out, self._gate(hidden)[:, 0])
        return out

    @property
    def _gates_heads(self) -> bool:
        """Whether a computed gate stands at the output of attention."""
        return self.gate_position == "sdpa" and self.activation not in _OUTPUT_MAPS

    @property
    def _fused(self) -> bool:
        """Whether gate logits go to :func:`gated_attention`, which applies them without an extra pass."""
        return self.attention == "softmax" and self.multiplicative and not self.head_shared

    def _project(
        self, hidden: Tensor, cache: KVCache | None, positions: Tensor | None, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ready for attention; gates that stand on one of them are applied."""
        source = self._source(hidden, cache, context)
        q_BHTD = self._heads(self.q_proj(hidden), self.num_heads)
        k_BGSD = self._heads(self.k_proj(source), self.num_kv_heads)
        v_BGSD = self._heads(self.v_proj(source), self.num_kv_heads)
        if self.gate_position == "query":
            q_BHTD = self._apply_gate(q_BHTD, self._gate(hidden))
        elif self.gate_position == "key":
            k_BGSD = self._apply_gate(k_BGSD, self._gate(source))
        elif self.gate_position == "value":
            v_BGSD = self._apply_gate(v_BGSD, self._gate(source))
        return self._place(q_BHTD, k_BGSD, v_BGSD, cache, positions)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Gate logits (B, heads, T, features); one "head" of ``embed_dim`` features at position "output"."""
        heads, features = self._gate_shape
        if self.gate_logits is not None:
            return self.gate_logits[:, None].expand(hidden.shape[0], heads, hidden.shape[1], features)
        assert self.gate_proj is not None
        return self._heads(self.gate_proj(hidden), heads)

    def _gate(self, hidden: Tensor) -> Tensor:
        """Gate scores: activated logits, in float32 for 16-bit ones, averaged over heads if shared."""
        logits = self._logits(hidden)
        scores = activation_function(self.activation)(logits.float() if logits.itemsize == 2 else logits)
        return scores.mean(1, keepdim=True) if self.head_shared else scores

    def _apply_gate(self, x: Tensor, gate: Tensor) -> Tensor:
        return (x * gate if self.multiplicative else x + gate).to(x.dtype)

    def _map_output(self, y_BHTD: Tensor, hidden: Tensor) -> Tensor:
        if self.activation == "output_silu":
            return nn.functional.silu(y_BHTD)
        if self.output_norm is not None:
            return normalise(self.output_norm, y_BHTD)
        return self._apply_gate(y_BHTD, self._gate(hidden)) if self._gates_heads else y_BHTD

    @torch.no_grad()
    def gate_scores(self, hidden: Tensor) -> Tensor | None:
        """The gate's scores for ``hidden`` (B, T, embed_dim): (B, heads or 1, T, d or 1), None without a gate."""
        if self.gate_position == "none" or self.activation in _OUTPUT_MAPS:
            return None
        return self._gate(hidden)

    def extra_repr(self) -> str:
        """Show the sizes and the gate."""
        return (
            f"{super().extra_repr()}, gate_position={self.gate_position!r}, granularity={self.granularity!r}, "
            f"activation={self.activation!r}"
        )
