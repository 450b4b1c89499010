"""The weights of experts, routed and shared, and how they are taken from a dense network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from softgate.errors import ArgumentValueError, StateError, check_choice
from softgate.routing._choice import check_count
from softgate.routing.expert_ffn import moe_ffn
from softgate.routing.expert_ffn.activations import NAMES, activate, is_gated

_INIT_STD = 0.02


class Experts(nn.Module):
    """The routed experts: ``gate_up_proj`` (E, 2F, D), or ``up_proj`` (E, F, D) without a gate, and ``down_proj``."""

    down_proj: nn.Parameter
    down_proj_bias: nn.Parameter | None

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        n_experts: int,
        activation: str,
        backend: str,
        recompute: bool,
        bias: bool,
        n_layers: int | None,
        **factory: Any,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, NAMES)
        check_choice("backend", backend, ("auto", "loop", "sorted", "grouped", "bmm"))
        check_count("d_ff", d_ff)
        if n_layers is not None:
            check_count("n_layers", n_layers)
        self.d_model, self.d_ff, self.n_experts = d_model, d_ff, n_experts
        self.activation, self.backend, self.recompute, self.n_layers = activation, backend, recompute, n_layers
        rows = 2 * d_ff if is_gated(activation) else d_ff
        self.up_name = "gate_up_proj" if is_gated(activation) else "up_proj"
        shapes = {self.up_name: (n_experts, rows, d_model), "down_proj": (n_experts, d_model, d_ff)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, **factory)))
            made = nn.Parameter(torch.empty(shape[:2], **factory)) if bias else None
            self.register_parameter(f"{name}_bias", made)
        #: Computes the forward pass where the experts are spread over processes.
        self.elsewhere: Callable[[Experts, Tensor, Tensor, Tensor], Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 0.02²), the down projections divided by √(2 n_layers); biases 0."""
        for name, parameter in self.named_parameters():
            if name.endswith("_bias"):
                nn.init.zeros_(parameter)
            else:
                smaller = math.sqrt(2 * self.n_layers) if self.n_layers and name == "down_proj" else 1.0
                nn.init.normal_(parameter, std=_INIT_STD / smaller)

    def forward(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """(T, D), (T, K), (T, K) -> (T, D)."""
        if self.elsewhere is not None:
            return self.elsewhere(self, x, indices, weights)
        return self.compute(x, indices, weights, self.matrices())

    def matrices(self) -> list[Tensor | None]:
        """The parameters in the order of :func:`softgate.routing.moe_ffn`: gate_up, down and their biases."""
        names = (self.up_name, "down_proj", f"{self.up_name}_bias", "down_proj_bias")
        return [getattr(self, name) for name in names]

    def compute(self, x: Tensor, indices: Tensor, weights: Tensor, matrices: list[Any]) -> Tensor:
        """The layer of this module's kind with the given matrices."""
        gate_up, down, gate_up_bias, down_bias = matrices
        return moe_ffn(
            x,
            gate_up,
            down,
            indices,
            weights,
            gate_up_bias,
            down_bias,
            activation=self.activation,
            recompute=self.recompute,
            backend=self.backend,
        )

    @torch.no_grad()
    def copy_from(self, dense: Dense, noise: float) -> None:
        """Make every expert a copy of ``dense``, with noise relative to the spread of each matrix."""
        given = {
            self.up_name: dense.gate_up,
            "down_proj": dense.down,
            f"{self.up_name}_bias": dense.gate_up_bias,
            "down_proj_bias": dense.down_bias,
        }
        for name, source in given.items():
            target = getattr(self, name)
            if target is None or source is None:
                continue
            target.copy_(source.expand_as(target))
            if noise:
                target.add_(torch.randn_like(target), alpha=noise * float(source.std()))

    def extra_repr(self) -> str:
        """Sizes and choices."""
        return (
            f"d_model={self.d_model}, d_ff={self.d_ff}, n_experts={self.n_experts}, activation={self.activation!r}, "
            f"backend={self.backend!r}, recompute={self.recompute}"
        )


class SharedExperts(nn.Module):
    """The network that every token passes: ``down_proj(act(gate_up_proj(x)))``."""

    def __init__(
        self, d_model: int, d_ff: int, activation: str, bias: bool, n_layers: int | None, **factory: Any
    ) -> None:
        super().__init__()
        self.activation = activation
        self.up_proj = nn.Linear(d_model, 2 * d_ff if is_gated(activation) else d_ff, bias=bias, **factory)
        self.down_proj = nn.Linear(d_ff, d_model, bias=bias, **factory)
        nn.init.normal_(self.up_proj.weight, std=_INIT_STD)
        nn.init.normal_(self.down_proj.weight, std=_INIT_STD / (math.sqrt(2 * n_layers) if n_layers else 1.0))
        for layer in (self.up_proj, self.down_proj):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) -> (T, D)."""
        return self.down_proj(activate(self.activation, self.up_proj(x)))


class Dense(NamedTuple):
    """The matrices of a dense feed-forward network: gate_up (2F, D) or (F, D), down (D, F), biases or None."""

    gate_up: Tensor
    down: Tensor
    gate_up_bias: Tensor | None
    down_bias: Tensor | None
    activation: str


#: Names of (gate, up, down) in networks that gate.
_GATED_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w_gate", "w_in", "w_out"), ("w1", "w3", "w2"))
_PLAIN_NAMES = (("up_proj", "down_proj"), ("w_in", "w_out"), ("fc1", "fc2"))
_SCALAR_NAMES = {"SiLU": "silu", "SiLUActivation": "silu", "GELU": "gelu", "GELUActivation": "gelu", "ReLU": "relu",
                 "silu": "silu", "gelu": "gelu", "relu": "relu"}  # fmt: skip
_GATED_OF = {"silu": "swiglu", "gelu": "geglu", "relu": "reglu"}


def dense_matrices(ffn: nn.Module, activation: str | None) -> Dense:
    """The matrices and the activation of a dense network of a known shape; ``activation`` overrules what it says."""
    if isinstance(ffn, nn.Sequential):
        linears = [m for m in ffn if isinstance(m, nn.Linear)]
        others = [m for m in ffn if not isinstance(m, nn.Linear | nn.Dropout)]
        if len(linears) == 2 and len(others) == 1:
            return _dense(linears[:1], linears[1], activation or _scalar_name(others[0], ffn))
    acts = [getattr(ffn, name) for name in ("act_fn", "activation", "act") if hasattr(ffn, name)]
    for gate, up, down in _GATED_NAMES:
        if all(isinstance(getattr(ffn, name, None), nn.Linear) for name in (gate, up, down)):
            chosen = activation or _GATED_OF[_scalar_name(acts[0], ffn) if acts else "silu"]
            return _dense([getattr(ffn, gate), getattr(ffn, up)], getattr(ffn, down), chosen)
    for up, down in _PLAIN_NAMES:
        if all(isinstance(getattr(ffn, name, None), nn.Linear) for name in (up, down)) and (acts or activation):
            return _dense([getattr(ffn, up)], getattr(ffn, down), activation or _scalar_name(acts[0], ffn))
    raise StateError(
        f"{type(ffn).__name__} is no feed-forward network that is known: it needs linear layers called "
        f"{', '.join('/'.join(names) for names in (*_GATED_NAMES, *_PLAIN_NAMES))}, or to be nn.Sequential(Linear, "
        "activation, Linear)"
    )


def _scalar_name(activation: Any, ffn: nn.Module) -> str:
    name = getattr(activation, "__name__", type(activation).__name__)
    if name not in _SCALAR_NAMES or getattr(activation, "approximate", "none") != "none":
        raise ArgumentValueError(
            f"activation must be given: {type(ffn).__name__} uses {name}, known are silu, gelu (exact) and relu"
        )
    return _SCALAR_NAMES[name]


def _dense(ups: list[nn.Linear], down: nn.Linear, activation: str) -> Dense:
    check_choice("activation", activation, NAMES)
    if is_gated(activation) != (len(ups) == 2):
        raise ArgumentValueError(f"activation={activation!r} does not fit a network with {len(ups)} input matrices")
    if any((up.bias is None) != (down.bias is None) for up in ups):
        raise StateError("all linear layers of a dense network must have biases, or none")
    biases: list[Tensor] = [up.bias for up in ups if up.bias is not None]
    matrices: list[Tensor] = [up.weight for up in ups]
    gate_up = torch.cat(matrices).detach()
    return Dense(gate_up, down.weight.detach(), torch.cat(biases).detach() if biases else None, down.bias, activation)
