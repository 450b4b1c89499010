"""The parameters of a Gaussian mixture of experts as one object: what a fit estimates and losses compare."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from softgate.errors import ArgumentValueError
from softgate.routing._activations import Activation, activation_of
from softgate.routing.gaussian_density import check_gate_options, expert_log_densities, gate_log_weights

__all__ = ["MixingMeasure"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, init=False)
class MixingMeasure:
    """Atoms (β1_i, a_i, b_i, var_i) with masses exp(β0_i / temperature), and how the gate selects among them.

    Args:
        beta0: (k,) gate biases.
        beta1: (k, d) gate slopes, or (k,) for d = 1.
        a: (k, d) slopes of the experts' means, or (k,) for d = 1.
        b: (k,) intercepts of the experts' means.
        var: (k,) positive variances (not standard deviations).
        temperature: divides the gate's logits, positive.
        activation: name, callable or None; acts on β1·x before the bias is added.
        top_k: number of experts that the gate selects; None selects all.
        select: ``"logit"`` or ``"score"``, what the experts are ranked by.

    Raises:
        ArgumentValueError: shapes that do not fit, numbers that are not finite, variances that are not positive.

    Example:
        >>> truth = MixingMeasure(beta0=[-8, 0], beta1=[25, 0], a=[-20, 20], b=[15, -5], var=[0.09, 0.16])
        >>> truth.gate([[0.32]]).round(3)
        array([[0.5, 0.5]])

    Paper: Statistical Perspective of Top-K Sparse Softmax Gating Mixture of Experts, arXiv 2309.13850, section 2.
    """

    beta0: Array
    beta1: Array
    a: Array
    b: Array
    var: Array
    temperature: float
    activation: Activation
    top_k: int | None
    select: str

    def __init__(
        self,
        beta0: ArrayLike,
        beta1: ArrayLike,
        a: ArrayLike,
        b: ArrayLike,
        var: ArrayLike,
        temperature: float = 1.0,
        activation: Activation = None,
        top_k: int | None = None,
        select: str = "logit",
    ) -> None:
        given = {"beta0": beta0, "beta1": beta1, "a": a, "b": b, "var": var}
        for name, array in given.items():
            value = np.array(array, dtype=np.float64)
            wide = name in ("beta1", "a")
            object.__setattr__(self, name, value[:, None] if wide and value.ndim == 1 else value)
        options = {"temperature": float(temperature), "activation": activation, "top_k": top_k, "select": select}
        for name, option in options.items():
            object.__setattr__(self, name, option)
        self._check()

    def _check(self) -> None:
        k, d = len(np.atleast_1d(self.beta0)), self.beta1.shape[-1] if self.beta1.ndim else 0
        shapes = {"beta0": (k,), "beta1": (k, d), "a": (k, d), "b": (k,), "var": (k,)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value.shape != shape or k == 0:
                raise ArgumentValueError(f"{name} must have shape {shape} with k at least 1, got {value.shape}")
            if not np.isfinite(value).all():
                raise ArgumentValueError(f"{name} must be finite, got {value}")
        if not (self.var > 0).all():
            raise ArgumentValueError(f"var must be positive, got {self.var}")
        check_gate_options(k, self.temperature, self.top_k, self.select)
        activation_of(self.activation)

    @property
    def n_experts(self) -> int:
        """Number of atoms k."""
        return len(self.beta0)

    @property
    def n_features(self) -> int:
        """Dimension d of x."""
        return int(self.beta1.shape[1])

    @property
    def masses(self) -> Array:
        """(k,) masses exp(β0_i / temperature)."""
        return np.exp(self.beta0 / self.temperature)

    @property
    def is_linear(self) -> bool:
        """Whether the gate's logits are affine in x, so that a common shift of all (β0_i, β1_i) changes nothing."""
        return self.activation is None or self.activation == "identity"

    def normalise(self, reference: int = -1) -> MixingMeasure:
        """The same density with expert ``reference`` pinned: β0 = 0 there, and β1 = 0 if the gate is linear.

        With ``select="score"`` the shift leaves the selected set as it is, too. An activation makes β1 of the
        reference a parameter of the density; only biases are shifted then.
        """
        if not -self.n_experts <= reference < self.n_experts:
            raise ArgumentValueError(f"reference must be an index of one of {self.n_experts} experts, got {reference}")
        beta1 = self.beta1 - self.beta1[reference] if self.is_linear else self.beta1
        return replace(self, beta0=self.beta0 - self.beta0[reference], beta1=beta1)

    def log_gate(self, X: ArrayLike) -> Array:
        """(n, k) logarithms of the gate's weights for X (n, d); -inf for experts that are not selected."""
        return self._log_gate(self._inputs(X)).numpy()

    def gate(self, X: ArrayLike) -> Array:
        """(n, k) weights of the gate for X (n, d); exactly 0 for experts that are not selected."""
        return self._log_gate(self._inputs(X)).exp().numpy()

    def means(self, X: ArrayLike) -> Array:
        """(n, k) means of the experts for X (n, d)."""
        return np.asarray(self._inputs(X).numpy() @ self.a.T + self.b)

    def joint_log_density(self, X: ArrayLike, y: ArrayLike) -> Array:
        """(n, k) log w_i(x) + log N(y; a_i·x + b_i, var_i) for X (n, d) and y (n,)."""
        x = self._inputs(X)
        y_n = torch.from_numpy(np.array(y, dtype=np.float64))
        if y_n.shape != x.shape[:1]:
            raise ArgumentValueError(f"y must have shape ({x.shape[0]},), got {tuple(y_n.shape)}")
        a, b, var = map(torch.from_numpy, (self.a, self.b, self.var))
        return (self._log_gate(x) + expert_log_densities(x, y_n, a, b, var)).numpy()

    def log_prob(self, X: ArrayLike, y: ArrayLike) -> Array:
        """(n,) log p(y|x), in nats; :func:`gaussian_moe_log_prob` is the differentiable form."""
        return torch.from_numpy(self.joint_log_density(X, y)).logsumexp(-1).numpy()

    def responsibilities(self, X: ArrayLike, y: ArrayLike) -> Array:
        """(n, k) posterior probabilities of the experts given x and y."""
        return torch.from_numpy(self.joint_log_density(X, y)).softmax(-1).numpy()

    def sample(self, X: ArrayLike, random_state: int | np.random.Generator | None = None) -> Array:
        """Draw y (n,) given X (n, d)."""
        rng = np.random.default_rng(random_state)
        gate, means = self.gate(X), self.means(X)
        chosen = (rng.random((len(gate), 1)) > gate.cumsum(1)).sum(1)
        # rounding may leave the cumulated weights a hair below 1
        chosen = np.minimum(chosen, self.n_experts - 1)
        rows = np.arange(len(gate))
        return np.asarray(means[rows, chosen] + np.sqrt(self.var[chosen]) * rng.standard_normal(len(gate)))

    def permute(self, order: ArrayLike) -> MixingMeasure:
        """The same measure with its atoms in another ``order`` (k,)."""
        index = np.asarray(order)
        if sorted(index.tolist()) != list(range(self.n_experts)):
            raise ArgumentValueError(f"order must be a permutation of 0 ... {self.n_experts - 1}, got {index.tolist()}")
        atoms = {name: getattr(self, name)[index] for name in ("beta0", "beta1", "a", "b", "var")}
        return replace(self, **atoms)

    def with_options(self, **changes: Any) -> MixingMeasure:
        """A copy with some fields replaced, e.g. ``top_k=1``."""
        known = {field.name for field in fields(self)}
        if not set(changes) <= known:
            raise ArgumentValueError(f"changes must be fields of a measure ({', '.join(sorted(known))}), got {changes}")
        return replace(self, **changes)

    def _inputs(self, X: ArrayLike) -> Tensor:
        x = np.array(X, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise ArgumentValueError(f"X must have shape (n, {self.n_features}), got {x.shape}")
        return torch.from_numpy(x)

    def _log_gate(self, x: Tensor) -> Tensor:
        return gate_log_weights(
            x,
            torch.from_numpy(self.beta0),
            torch.from_numpy(self.beta1),
            temperature=self.temperature,
            activation=self.activation,
            top_k=self.top_k,
            select=self.select,
        )
