"""A mixture-of-experts feed-forward layer: gate, experts, shared experts, balance, statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_number
from softgate._math.masks import accumulation_dtype
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, bad_type, bad_value, check_choice
from softgate.routing._auxiliary import AUXILIARY, attach, auxiliary_terms, check_auxiliary
from softgate.routing._choice import check_count
from softgate.routing._experts import Experts, SharedExperts, dense_matrices
from softgate.routing.expert_capacity import within_capacity
from softgate.routing.gates import GateOutput, TopKSoftmax
from softgate.routing.sigmoid_bias import SigmoidBias, in_backward, loads, max_violation

__all__ = ["MoE", "aux_losses"]

#: Gates that a name stands for.
GATES: dict[str, Callable[..., nn.Module]] = {"topk_softmax": TopKSoftmax, "sigmoid_bias": SigmoidBias}


class MoE(nn.Module):
    """Sparse mixture of feed-forward experts: ``y_t = Σ_{i ∈ chosen} w_ti FFN_i(x_t) + FFN_shared(x_t)``.

    No token is dropped unless ``capacity_factor`` says so. Matrices are laid out as in transformers
    (``gate.weight``, ``experts.gate_up_proj``, ``experts.down_proj``), whose checkpoints load as they are.

    Args:
        d_model: width D.
        d_ff: width F of each expert.
        n_experts: number of experts E.
        top_k: experts per token, for a gate given by name.
        gate: ``"topk_softmax"``, ``"sigmoid_bias"``, a gate, or any callable from (T, D) to a
            :class:`~softgate.routing.GateOutput`.
        activation: as in :func:`softgate.routing.moe_ffn`.
        n_shared: experts that every token passes, as one network of width ``n_shared · d_ff``.
        backend: as in :func:`softgate.routing.moe_ffn`.
        aux: balance losses and their coefficients: ``"load_balance"`` (Switch), ``"z"``, ``"importance"``,
            ``"sequence"``; collect them with :func:`aux_losses`. None for none.
        inject_aux: add their gradients to the output's, so that back-propagating the main loss alone trains them.
        capacity_factor: an expert takes at most ⌈capacity_factor · T · K / E⌉ assignments, those with the largest
            weights; None for no limit.
        recompute: keep only the inputs for backward.
        bias: biases in the experts.
        n_layers: depth of the network; the down projections then start smaller by √(2 n_layers).
        strict: raise where router logits are NaN or +inf (waits for an accelerator).
        device: where the parameters live.
        dtype: of the parameters.

    Shapes: x (…, D) -> (…, D).

    Example:
        >>> import torch
        >>> layer = MoE(8, 16, 4)
        >>> layer(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
        >>> sorted(aux_losses(layer))
        ['load_balance', 'z']

    Paper: arXiv 1701.06538, eq. (1); shared experts: DeepSeekMoE, arXiv 2401.06066.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        n_experts: int,
        top_k: int = 2,
        gate: str | Callable[[Tensor], GateOutput] = "topk_softmax",
        activation: str = "swiglu",
        n_shared: int = 0,
        backend: str = "auto",
        aux: Mapping[str, float] | None = AUXILIARY,
        inject_aux: bool = False,
        capacity_factor: float | None = None,
        recompute: bool = False,
        bias: bool = False,
        n_layers: int | None = None,
        strict: bool = False,
        **factory: Any,
    ) -> None:
        super().__init__()
        for name, flag in (("inject_aux", inject_aux), ("recompute", recompute), ("bias", bias), ("strict", strict)):
            if not isinstance(flag, bool):
                bad_type(name, flag, "a bool")
        unknown = set(factory) - {"device", "dtype"}
        if unknown:
            raise ArgumentTypeError(f"MoE got unknown arguments: {', '.join(sorted(unknown))}")
        self.d_model, self.n_experts = check_count("d_model", d_model), check_count("n_experts", n_experts)
        self.gate = self._made(gate, top_k, factory)
        self.experts = Experts(d_model, d_ff, n_experts, activation, backend, recompute, bias, n_layers, **factory)
        check_count("n_shared", n_shared, low=0)
        self.shared = (
            SharedExperts(d_model, n_shared * d_ff, activation, bias, n_layers, **factory) if n_shared else None
        )
        self.aux = check_auxiliary(aux)
        self.inject_aux, self.strict = inject_aux, strict
        if capacity_factor is not None:
            check_number("capacity_factor", capacity_factor, low=0.0, low_open=True, high_open=True)
        self.capacity_factor = capacity_factor
        self._terms: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] = {}

    def _made(self, gate: Any, top_k: Any, factory: Mapping[str, Any]) -> Callable[[Tensor], GateOutput]:
        if isinstance(gate, str):
            check_choice("gate", gate, tuple(GATES))
            check_count("top_k", top_k, high=self.n_experts, what=", n_experts")
            return GATES[gate](self.d_model, self.n_experts, top_k, **factory)  # type: ignore[return-value]
        if not callable(gate):
            bad_type("gate", gate, f"one of {', '.join(map(repr, GATES))} or a callable")
        experts = getattr(gate, "n_experts", self.n_experts)
        if experts != self.n_experts:
            bad_value("gate", experts, f"a gate for n_experts={self.n_experts} experts")
        if isinstance(gate, SigmoidBias):
            gate.layer_counts()
        return gate

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Apply the layer.

        Args:
            x: (…, D).
            mask: (…) bool, False for padding: it passes no routed expert (shared ones only) and counts nowhere.

        Returns:
            (…, D), in the dtype of ``x``.
        """
        check_float_tensor("x", x)
        if x.ndim < 1 or x.shape[-1] != self.d_model:
            bad_value("x", tuple(x.shape), f"of shape (…, {self.d_model})")
        rows = x.reshape(-1, self.d_model)
        keep = None if mask is None else _flat_mask(mask, x.shape[:-1])
        routed, terms = self._route(rows, keep, x.shape[:-1])
        y = self.experts(rows, routed.indices, routed.weights)
        if self.shared is not None:
            y = y + self.shared(rows)
        return (attach(y, terms) if self.inject_aux and terms else y).view(x.shape)

    def _route(self, rows: Tensor, keep: Tensor | None, shape: torch.Size) -> tuple[GateOutput, dict[str, Tensor]]:
        """The gate's decision without padding and tokens that are no numbers, within capacity; and its losses."""
        # a token that is no number must not reach the gate: 0 · NaN would spoil the gradient of its weights
        finite = rows.detach().sum(-1, dtype=accumulation_dtype(rows.dtype)).isfinite()
        routed = self.gate(torch.where(finite[:, None], rows, 0.0))
        logits = routed.logits.detach()
        valid = finite & ~logits.isnan().any(-1) & logits.amax(-1).isfinite()
        if self.strict and not bool(valid.all()):
            raise StateError("router logits are NaN or infinite (strict=True): look at x and at the gate's weights")
        counted = valid if keep is None else valid & keep
        indices = torch.where(counted[:, None], routed.indices, self.n_experts)
        chosen = (indices < self.n_experts).sum()
        if self.capacity_factor is not None:
            limit = math.ceil(self.capacity_factor * indices.numel() / self.n_experts)
            indices = within_capacity(indices, routed.weights, self.n_experts, limit)
        weights = torch.where(indices < self.n_experts, routed.weights, 0.0)
        if isinstance(self.gate, SigmoidBias):
            self.gate.count(indices)
        seen = {"chosen": chosen, "bad": (~valid if keep is None else keep & ~valid).sum()}
        terms = auxiliary_terms(self.aux, routed, indices, counted, shape) if self.training else {}
        self._remember(routed, indices, counted, terms, seen)
        return GateOutput(indices, weights, routed.logits, routed.probs), terms

    def _remember(
        self,
        routed: GateOutput,
        indices: Tensor,
        counted: Tensor,
        terms: dict[str, Tensor],
        seen: dict[str, Tensor],
    ) -> None:
        """Keep what statistics are made of, and the losses; an activation checkpoint's repetition adds nothing."""
        if in_backward() or torch.compiler.is_exporting():
            return
        probs = torch.where(counted[:, None], routed.probs.detach(), 0.0)
        entropy = -torch.special.xlogy(probs, probs).sum() / counted.sum().clamp_min(1)
        self._terms = terms
        self._seen = {**seen, "load": loads(indices, self.n_experts), "entropy": entropy}

    @property
    def stats(self) -> dict[str, Tensor]:
        """Figures of the last forward pass, as tensors on the layer's device (reading them does not wait).

        ``load`` (E,) assignments per expert; ``load_entropy`` in nats (ln E when equal); ``max_violation``
        (max/mean - 1); ``dropped`` share of assignments beyond capacity; ``router_entropy`` mean entropy of the gate in
        nats; ``bad_tokens`` how many tokens had logits that are no numbers.
        """
        if not self._seen:
            raise StateError("stats are of the last forward pass, and there was none yet")
        load = self._seen["load"]
        share = load / load.sum().clamp_min(1)
        return {
            "load": load,
            "load_entropy": -torch.special.xlogy(share, share).sum(),
            "max_violation": max_violation(load),
            "dropped": (self._seen["chosen"] - load.sum()) / self._seen["chosen"].clamp_min(1),
            "router_entropy": self._seen["entropy"],
            "bad_tokens": self._seen["bad"],
        }

    @classmethod
    def from_dense(cls, ffn: nn.Module, n_experts: int, *, noise: float = 0.0, **options: Any) -> MoE:
        """A mixture whose experts all start as the dense network ``ffn`` (up-cycling).

        With a gate whose weights sum to one and ``noise=0`` it computes what ``ffn`` does.

        Args:
            ffn: a network with ``gate_proj``/``up_proj``/``down_proj``, ``w_gate``/``w_in``/``w_out`` or
                ``w1``/``w3``/``w2``, or an nn.Sequential of linear, activation, linear.
            n_experts: number of experts.
            noise: standard deviation of what is added to each expert's weights, relative to theirs.
            **options: further arguments of :class:`MoE`.
        """
        check_number("noise", noise, low=0.0, high_open=True)
        dense = dense_matrices(ffn, options.get("activation"))
        options = {**options, "activation": dense.activation, "bias": dense.gate_up_bias is not None}
        width, hidden = dense.down.shape
        layer = cls(width, hidden, n_experts, device=dense.down.device, dtype=dense.down.dtype, **options)
        layer.experts.copy_from(dense, noise)
        return layer

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles, without the last forward pass: its tensors belong to a graph."""
        return {**super().__getstate__(), "_terms": {}, "_seen": {}}  # type: ignore[misc]

    def extra_repr(self) -> str:
        """Sizes and losses."""
        return (
            f"d_model={self.d_model}, n_experts={self.n_experts}, aux={self.aux}, inject_aux={self.inject_aux}, "
            f"capacity_factor={self.capacity_factor}"
        )


def _flat_mask(mask: Any, shape: torch.Size) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        bad_type("mask", mask, "a bool tensor or None")
    if mask.shape != shape:
        raise ArgumentValueError(f"mask must have shape {tuple(shape)}, got {tuple(mask.shape)}")
    return mask.reshape(-1)


def aux_losses(model: nn.Module) -> dict[str, Tensor]:
    """Weighted auxiliary losses of the last forward pass in training mode, summed over the layers of ``model``.

    Add their sum to the main loss, unless the layers have ``inject_aux=True``.

    Args:
        model: any module that holds :class:`MoE` layers.

    Returns:
        name -> scalar, coefficient included; empty if no layer has run in training mode.

    Example:
        >>> import torch
        >>> layer = MoE(8, 16, 4, aux={"z": 1e-3})
        >>> _ = layer(torch.randn(5, 8))
        >>> list(aux_losses(layer))
        ['z']
    """
    found: dict[str, Tensor] = {}
    for module in model.modules():
        if isinstance(module, MoE):
            for name, term in module._terms.items():
                found[name] = found[name] + term if name in found else term
    return found
