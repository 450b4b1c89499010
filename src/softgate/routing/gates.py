"""Gates of a mixture of experts: from hidden states to experts and their weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from softgate._checks import check_float_tensor, check_number
from softgate._math import masks
from softgate.errors import bad_value, check_choice
from softgate.routing._choice import check_count, widened
from softgate.routing.dense_to_sparse import Activation, dense_to_sparse_gate, gate_activation, sparsified
from softgate.routing.top_k import Order, Renorm, topk_softmax

__all__ = ["ActivationGate", "DenseToSparse", "Gate", "GateOutput", "TopKSoftmax"]

_INIT_STD = 0.02
#: Activations for which scaling slopes, biases and temperature together changes nothing.
_HOMOGENEOUS = ("identity", "relu")


class GateOutput(NamedTuple):
    """What a gate decides for T tokens; float32, or float64 for float64 hidden states.

    Attributes:
        indices: (T, K) int64, the chosen experts; E for "none".
        weights: (T, K), 0 where the index is E.
        logits: (T, E), before the softmax (or sigmoid).
        probs: (T, E), non-negative shares of all experts, what balance losses take.
    """

    indices: Tensor
    weights: Tensor
    logits: Tensor
    probs: Tensor


class Gate(nn.Module):
    """Base of the gates: a linear map to one logit per expert, in float32 also under autocast.

    A subclass gives ``choose``; what has to happen after an optimiser step (a schedule, a balancing bias) goes into
    ``after_step``, which :func:`softgate.routing.update_gates` calls.

    Args:
        d_model: width D of the hidden states.
        n_experts: number of experts E.
        device: where the parameters live.
        dtype: of the parameters.
    """

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("d_model", d_model)
        check_count("n_experts", n_experts)
        self.d_model, self.n_experts = d_model, n_experts
        self.weight = nn.Parameter(torch.empty(n_experts, d_model, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the router's weights from N(0, 0.02²)."""
        nn.init.normal_(self.weight, std=_INIT_STD)

    def logits(self, x: Tensor) -> Tensor:
        """(T, D) -> (T, E)."""
        x = widened(x)
        return functional.linear(x, self.weight.to(x.dtype))

    def choose(self, logits: Tensor) -> GateOutput:
        """The experts and weights for these logits."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> GateOutput:
        """Route hidden states ``x`` (T, D)."""
        check_float_tensor("x", x)
        if x.ndim != 2 or x.shape[-1] != self.d_model:
            bad_value("x", tuple(x.shape), f"of shape (T, {self.d_model})")
        with masks.without_autocast(x):
            return self.choose(self.logits(x))

    def after_step(self, group: Any = None) -> None:
        """What follows an optimiser step; nothing here."""

    def extra_repr(self) -> str:
        """Sizes."""
        return f"d_model={self.d_model}, n_experts={self.n_experts}"


class TopKSoftmax(Gate):
    """Softmax of the K largest logits; see :func:`softgate.routing.topk_softmax`.

    Args:
        d_model: width of the hidden states.
        n_experts: number of experts E.
        k: experts per token.
        renorm: ``"topk"`` (Mixtral, Qwen3-MoE) or ``"none"`` (Switch, OLMoE). With ``"topk"`` and k = 1 every weight is
            1 and the router learns nothing from the task: a warning says so.
        order: ``"softmax_first"`` or ``"topk_first"``.
        noise: in training, ``"shazeer"`` adds N(0, 1)·softplus(x W_noise) to the logits, ``"jitter"`` multiplies x by
            U(1 - jitter, 1 + jitter).
        jitter: half width of the jitter.
        scale: factor of the weights.
        device: where the parameters live.
        dtype: of the parameters.

    Example:
        >>> import torch
        >>> TopKSoftmax(4, 8, k=2)(torch.zeros(3, 4)).weights[0].tolist()
        [0.5, 0.5]

    Paper: arXiv 1701.06538, eq. (3)-(5) (noisy top-k); arXiv 2101.03961, section 2.2 (jitter).
    """

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int = 2,
        *,
        renorm: Renorm = "topk",
        order: Order = "softmax_first",
        noise: Literal["none", "shazeer", "jitter"] = "none",
        jitter: float = 0.01,
        scale: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, n_experts, device=device, dtype=dtype)
        self.k = check_count("k", k, high=n_experts, what=", n_experts")
        check_choice("renorm", renorm, ("topk", "none"))
        check_choice("order", order, ("softmax_first", "topk_first"))
        check_choice("noise", noise, ("none", "shazeer", "jitter"))
        if order == "topk_first" and renorm == "none":
            bad_value("renorm", renorm, "'topk' with order='topk_first'")
        if renorm == "topk" and k == 1 and n_experts > 1:
            warnings.warn("renorm='topk' with k=1 makes every weight 1: the router gets no gradient from the task",
                          stacklevel=2)  # fmt: skip
        self.renorm, self.order, self.noise = renorm, order, noise
        self.jitter = check_number("jitter", jitter, low=0.0, high=1.0, high_open=True)
        self.scale = check_number("scale", scale, low=0.0, low_open=True, high_open=True)
        if noise == "shazeer":
            self.noise_weight = nn.Parameter(torch.zeros(n_experts, d_model, device=device, dtype=dtype))

    def logits(self, x: Tensor) -> Tensor:
        """(T, D) -> (T, E), noisy in training if asked for."""
        x = widened(x)
        if self.training and self.noise == "jitter":
            x = x * torch.empty_like(x).uniform_(1.0 - self.jitter, 1.0 + self.jitter)
        found = super().logits(x)
        if self.training and self.noise == "shazeer":
            spread = functional.softplus(functional.linear(x, self.noise_weight.to(x.dtype)))
            found = found + torch.randn_like(found) * spread
        return found

    def choose(self, logits: Tensor) -> GateOutput:
        """The k largest logits and their softmax."""
        weights, indices = topk_softmax(logits, self.k, renorm=self.renorm, order=self.order, scale=self.scale)
        return GateOutput(indices, weights, logits, logits.softmax(-1))

    def extra_repr(self) -> str:
        """Sizes and choices."""
        return f"{super().extra_repr()}, k={self.k}, renorm={self.renorm!r}, order={self.order!r}, noise={self.noise!r}"


class ActivationGate(TopKSoftmax):
    """Top-K softmax of ``(act(x·w_i) + b_i) / τ``.

    The activation, before the bias, is what makes a temperature mean something: without it τ only rescales w and b.

    Args:
        d_model: width of the hidden states.
        n_experts: number of experts E.
        k: experts per token.
        activation: ``"gelu"``, ``"sigmoid"``, ``"tanh"``, ``"silu"``, ``"relu"``, ``"identity"`` or a callable.
        temperature: τ, positive.
        learn_temperature: τ = softplus(ρ) + 1e-4 with a parameter ρ that starts at ``temperature``.
        renorm: as in :class:`TopKSoftmax`.
        device: where the parameters live.
        dtype: of the parameters.

    Example:
        >>> import torch
        >>> ActivationGate(4, 8, k=2, activation="tanh")(torch.zeros(3, 4)).indices.shape
        torch.Size([3, 2])

    Paper: arXiv 2401.13875, eq. (7).
    """

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int = 2,
        *,
        activation: Activation = "gelu",
        temperature: float = 1.0,
        learn_temperature: bool = False,
        renorm: Renorm = "topk",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, n_experts, k, renorm=renorm, device=device, dtype=dtype)
        self.activation: Callable[[Tensor], Tensor] = gate_activation("activation", activation)
        self.activation_name = (
            activation if isinstance(activation, str) else getattr(activation, "__name__", "callable")
        )
        start = check_number("temperature", temperature, low=1e-4 if learn_temperature else 0.0, low_open=True,
                             high_open=True)  # fmt: skip
        if learn_temperature and activation in _HOMOGENEOUS:
            warnings.warn(
                f"a learned temperature means nothing with activation={activation!r}: it only rescales the logits",
                stacklevel=2,
            )
        self.bias = nn.Parameter(torch.zeros(n_experts, device=device, dtype=dtype))
        # softplus(ρ) = y for ρ = log(e^y - 1)
        rho = torch.tensor(start - 1e-4 if learn_temperature else start, dtype=torch.float64)
        rho = rho + torch.log(-torch.expm1(-rho)) if learn_temperature else rho
        self.learn_temperature = learn_temperature
        if learn_temperature:
            self.rho = nn.Parameter(rho.to(device=device, dtype=torch.float32))
        else:
            self.register_buffer("fixed_temperature", rho.to(device=device, dtype=torch.float32))

    @property
    def temperature(self) -> Tensor:
        """τ, a scalar tensor."""
        if self.learn_temperature:
            return functional.softplus(self.rho) + 1e-4
        return self.fixed_temperature  # type: ignore[return-value]

    def logits(self, x: Tensor) -> Tensor:
        """(T, D) -> (T, E)."""
        found = self.activation(super().logits(x))
        return (found + self.bias.to(found.dtype)) / self.temperature.to(found.dtype)

    def extra_repr(self) -> str:
        """Sizes and choices."""
        return (
            f"{super().extra_repr()}, activation={self.activation_name!r}, learn_temperature={self.learn_temperature}"
        )


class DenseToSparse(Gate):
    """A gate that starts dense and becomes sparse: softmax at a falling temperature, small shares left out.

    In training the logits get Gumbel noise; p = softmax((logits + noise) / τ). Active are the experts with a share of
    at least ``threshold``, the largest always, at most ``k_max``; their weights are p, not renormalised. τ falls from
    ``tau0`` to ``tau_min`` over ``steps`` calls of ``after_step``; the step is a buffer, so training resumes where it
    stopped.

    Args:
        d_model: width of the hidden states.
        n_experts: number of experts E.
        steps: optimiser steps until ``tau_min`` is reached.
        tau0: first temperature.
        tau_min: last temperature.
        schedule: ``"exp"``, ``"linear"`` or ``"cosine"``.
        gumbel: add Gumbel noise in training.
        threshold: least share of an active expert; 1/E if None.
        k_max: most experts per token; E if None.
        device: where the parameters live.
        dtype: of the parameters.

    Example:
        >>> import torch
        >>> gate = DenseToSparse(4, 8, steps=100)
        >>> gate.temperature
        tensor(2.)

    Paper: arXiv 2401.13875, section 1; schedule and threshold after EvoMoE, arXiv 2112.14397.
    """

    step: Tensor

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        *,
        steps: int,
        tau0: float = 2.0,
        tau_min: float = 0.3,
        schedule: Literal["exp", "linear", "cosine"] = "exp",
        gumbel: bool = True,
        threshold: float | None = None,
        k_max: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, n_experts, device=device, dtype=dtype)
        self.steps = check_count("steps", steps)
        self.tau_min = check_number("tau_min", tau_min, low=0.0, low_open=True, high_open=True)
        self.tau0 = check_number("tau0", tau0, low=self.tau_min, high_open=True)
        check_choice("schedule", schedule, ("exp", "linear", "cosine"))
        if threshold is not None:
            check_number("threshold", threshold, low=0.0, high=1.0)
        self.schedule, self.gumbel, self.threshold = schedule, gumbel, threshold
        self.k_max = n_experts if k_max is None else check_count("k_max", k_max, high=n_experts, what=", n_experts")
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=device))

    @property
    def temperature(self) -> Tensor:
        """τ at the present step, a scalar tensor."""
        done = (self.step / self.steps).clamp(max=1.0)
        if self.schedule == "exp":
            return self.tau0 * (self.tau_min / self.tau0) ** done
        share = done if self.schedule == "linear" else (1.0 - torch.cos(torch.pi * done)) / 2.0
        return self.tau0 + (self.tau_min - self.tau0) * share

    def choose(self, logits: Tensor) -> GateOutput:
        """The experts whose share reaches the threshold."""
        noisy = logits
        if self.training and self.gumbel:
            noisy = logits - torch.log(torch.empty_like(logits).exponential_().clamp_min(1e-30))
        probs = dense_to_sparse_gate(noisy, None, self.temperature.to(logits.dtype))
        weights, indices = sparsified(probs, self.k_max, self.threshold, self.n_experts)
        return GateOutput(indices, weights, logits, probs)

    def after_step(self, group: Any = None) -> None:
        """One step down the schedule."""
        self.step += 1

    def extra_repr(self) -> str:
        """Sizes and schedule."""
        return (
            f"{super().extra_repr()}, steps={self.steps}, tau0={self.tau0}, tau_min={self.tau_min}, "
            f"schedule={self.schedule!r}, k_max={self.k_max}"
        )
