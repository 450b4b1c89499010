"""A regression whose local lines are chosen by a softmax gate, as an estimator of scikit-learn's kind."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softgate._checks import check_number
from softgate._sklearn import BaseEstimator, RegressorMixin
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, check_choice
from softgate.routing._activations import Activation, is_homogeneous
from softgate.routing._gaussian.direct import run_lbfgs
from softgate.routing._gaussian.em import SMALLEST_SHARE, Fit, run_em
from softgate.routing._gaussian.likelihood import Likelihood
from softgate.routing._gaussian.segments import SegmentSearch
from softgate.routing._gaussian.start import start_from_clusters
from softgate.routing._gaussian.state import Frame, State
from softgate.routing._gaussian.threads import one_blas_thread
from softgate.routing.gaussian_density import check_gate_options
from softgate.routing.mixing_measure import MixingMeasure

__all__ = ["GaussianMoE"]

Array = NDArray[np.float64]

GATES = ("softmax", "dense_to_sparse", "activation")
#: Iterations with all experts selected before a sparse gate is fitted: equal logits would never select the last ones.
DENSE_STEPS = 20


class GaussianMoE(RegressorMixin, BaseEstimator):
    """Gaussian mixture of linear experts, ``p(y|x) = Σ_i w_i(x) N(y; a_i·x + b_i, var_i)``, by maximum likelihood.

    Gates: ``"softmax"`` has w = softmax(β1·x + β0) over the ``top_k`` largest logits; ``"dense_to_sparse"`` divides the
    logits by a temperature; ``"activation"`` has (σ(β1·x) + β0) / temperature. The last expert is pinned: β0 = 0 and,
    with an affine gate, β1 = 0, as a common shift changes nothing.

    Args:
        n_experts: number of experts k, at least 1.
        top_k: how many of them the gate selects for each x, 1 to k; None selects all.
        select: what the experts are ranked by: ``"logit"`` or ``"score"`` (β1·x without bias, the formal definition).
        gate: ``"softmax"``, ``"dense_to_sparse"`` or ``"activation"``.
        activation: σ of ``gate="activation"``: a name or an elementwise callable on tensors.
        temperature: divides the logits; the start of it where it is learned.
        learn_temperature: fit the temperature, too. Warns where it is no parameter of the density.
        solver: ``"em"`` (the likelihood never falls) or ``"lbfgs"`` (all parameters at once; not with sparse gates).
        gate_update: ``"newton"``, or ``"profile"``: with one feature and ``top_k=1``, search the boundaries, which EM
            cannot move. For two experts that gives the maximum-likelihood estimate.
        init: ``"kmeans"`` or a :class:`MixingMeasure` (or a fitted estimator) to start from.
        max_iter: most iterations.
        tol: the fit ends when an iteration gains less log-likelihood, in nats.
        n_init: starts, of which the best fit is kept; the first is deterministic.
        variance_floor: smallest variance of an expert, in the square of y's unit.
        random_state: seed of the further starts.

    Attributes:
        beta0_, beta1_, a_, b_, var_: parameters, shapes (k,), (k, d), (k, d), (k,), (k,).
        temperature_: the gate's temperature.
        measure_: the same as a :class:`MixingMeasure`.
        log_likelihood_: Σ_n log p(y_n|x_n) of the training data, in nats.
        history_: (n_iter_ + 1,) log-likelihood from the start on.
        n_iter_, converged_: iterations, and whether they ended by ``tol``.

    Example:
        >>> import numpy as np
        >>> x = np.linspace(0, 1, 200)[:, None]
        >>> model = GaussianMoE(n_experts=2).fit(x, np.abs(x[:, 0] - 0.4))
        >>> model.a_.ravel().round(2) + 0.0
        array([-1.,  1.])

    Paper: Statistical Perspective of Top-K Sparse Softmax Gating Mixture of Experts, arXiv 2309.13850, section 2;
    Is Temperature Sample Efficient for Softmax Gaussian Mixture of Experts?, arXiv 2401.13875.
    """

    def __init__(
        self,
        n_experts: int = 2,
        *,
        top_k: int | None = None,
        select: str = "logit",
        gate: str = "softmax",
        activation: Activation = None,
        temperature: float = 1.0,
        learn_temperature: bool = False,
        solver: str = "em",
        gate_update: str = "newton",
        init: Any = "kmeans",
        max_iter: int = 2000,
        tol: float = 1e-6,
        n_init: int = 1,
        variance_floor: float = 1e-4,
        random_state: Any = None,
    ) -> None:
        self.n_experts = n_experts
        self.top_k = top_k
        self.select = select
        self.gate = gate
        self.activation = activation
        self.temperature = temperature
        self.learn_temperature = learn_temperature
        self.solver = solver
        self.gate_update = gate_update
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.n_init = n_init
        self.variance_floor = variance_floor
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Estimate the parameters from X (n, d) and y (n,).

        Args:
            X: inputs; any real dtype, frames too.
            y: responses.
            sample_weight: (n,) non-negative weights; an integer weight acts as that many equal samples.

        Returns:
            The estimator.

        Raises:
            ArgumentValueError: options that do not fit each other or the data.
            FloatingPointError: the activation gave something that is not finite.

        Warns:
            ConvergenceWarning: ``max_iter`` was reached, an expert has no samples, or the gate cannot be fitted.
            UserWarning: the temperature is learned and the gate's activation makes it meaningless.
        """
        from sklearn.utils.validation import _check_sample_weight, validate_data

        # a copy of its own: blocks are computed in place, and the input may be read-only
        x, targets = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        targets = targets.astype(np.float64, copy=False)
        self._check_options(x.shape[1])
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, x, dtype=np.float64)
        if weight is not None:
            if (weight < 0).any() or not weight.sum() > 0:
                raise ArgumentValueError("sample_weight must be non-negative with a positive sum")
            x, targets, weight = x[weight > 0], targets[weight > 0], weight[weight > 0]
        template = self._template(x.shape[1])
        frame = Frame.of(x, targets, np.ones(len(x)) if weight is None else weight, centred=template.is_linear)
        likelihood = self._likelihood(x, targets, weight, frame, self.top_k)
        with one_blas_thread():
            fits = [self._run(likelihood, start) for start in self._starts(likelihood, template)]
        best = max(fits, key=lambda fit: fit.history[-1])
        self._keep(frame.leave(best.state, template), best)
        return self

    def predict(self, X: ArrayLike) -> Array:
        """(n,) mean of y given x, ``Σ_i w_i(x) (a_i·x + b_i)``."""
        x = self._validated(X)
        return np.asarray((self.measure_.gate(x) * self.measure_.means(x)).sum(1))

    def predict_gate(self, X: ArrayLike) -> Array:
        """(n, k) weights of the gate."""
        return self.measure_.gate(self._validated(X))

    def responsibilities(self, X: ArrayLike, y: ArrayLike) -> Array:
        """(n, k) posterior probability of each expert given x and y."""
        return self.measure_.responsibilities(self._validated(X), y)

    def log_prob(self, X: ArrayLike, y: ArrayLike) -> Array:
        """(n,) log p(y|x), in nats; :func:`gaussian_moe_log_prob` is the differentiable form."""
        return self.measure_.log_prob(self._validated(X), y)

    def sample(self, X: ArrayLike, random_state: Any = None) -> Array:
        """Draw y (n,) given X (n, d)."""
        return self.measure_.sample(self._validated(X), random_state)

    def _validated(self, X: ArrayLike) -> Array:
        from sklearn.utils.validation import check_is_fitted, validate_data

        check_is_fitted(self)
        return np.asarray(validate_data(self, X, dtype=np.float64, reset=False))

    def _check_options(self, features: int) -> None:
        for name, low in (("n_experts", 1), ("max_iter", 1), ("n_init", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                bad_type(name, value, "an int")
            if value < low:
                raise ArgumentValueError(f"{name} must be at least {low}, got {value}")
        for name in ("tol", "variance_floor"):
            value = getattr(self, name)
            check_number(name, value, low=0.0, low_open=True, high_open=True)
        check_choice("gate", self.gate, GATES)
        check_choice("solver", self.solver, ("em", "lbfgs"))
        check_choice("gate_update", self.gate_update, ("newton", "profile"))
        check_gate_options(self.n_experts, self.temperature, self.top_k, self.select)
        if self.gate != "activation" and self.activation is not None:
            raise ArgumentValueError(f"activation must be None with gate={self.gate!r}, got {self.activation!r}")
        if self.gate == "activation" and self.activation is None:
            raise ArgumentValueError("activation must be a name or a callable with gate='activation', got None")
        if self.gate == "softmax" and (self.temperature != 1.0 or self.learn_temperature):
            raise ArgumentValueError("temperature must be 1 with gate='softmax'; gate='dense_to_sparse' has one")
        sparse = self.top_k is not None and self.top_k < self.n_experts
        if self.solver == "lbfgs" and sparse:
            raise ArgumentValueError("solver must be 'em' with a sparse gate: its likelihood jumps")
        if self.gate_update == "profile" and not self._can_profile(features):
            raise ArgumentValueError(
                "gate_update='profile' needs one feature, top_k=1, select='logit', solver='em' and no activation"
            )

    def _can_profile(self, features: int) -> bool:
        plain = self.gate != "activation" and not self.learn_temperature and self.select == "logit"
        return plain and features == 1 and self.top_k == 1 and self.solver == "em"

    def _template(self, features: int) -> MixingMeasure:
        """A measure with this estimator's gate, and the start's parameters where there is one."""
        start = getattr(self.init, "measure_", self.init)
        options: dict[str, Any] = {"activation": self.activation, "top_k": self.top_k, "select": self.select}
        if isinstance(start, str):
            check_choice("init", start, ("kmeans",))
            zeros = np.zeros(self.n_experts)
            wide = np.zeros((self.n_experts, features))
            return MixingMeasure(zeros, wide, wide, zeros, zeros + 1, float(self.temperature), **options)
        if not isinstance(start, MixingMeasure):
            raise ArgumentTypeError(f"init must be 'kmeans' or a MixingMeasure, got {type(start).__name__}")
        if (start.n_experts, start.n_features) != (self.n_experts, features):
            raise ArgumentValueError(
                f"init must have {self.n_experts} experts and {features} features, "
                f"got {start.n_experts} and {start.n_features}"
            )
        if not self.learn_temperature and start.temperature != self.temperature:
            raise ArgumentValueError(f"init must have temperature {self.temperature}, got {start.temperature}")
        return start.with_options(**options).normalise()

    def _likelihood(self, x: Array, y: Array, weight: Array | None, frame: Frame, top_k: int | None) -> Likelihood:
        return Likelihood(
            x,
            y,
            weight,
            frame,
            top_k=top_k,
            by_score=self.select == "score",
            activation=self.activation,
            learn_temperature=self.learn_temperature,
        )

    def _starts(self, likelihood: Likelihood, template: MixingMeasure) -> list[State]:
        from sklearn.utils import check_random_state

        if not isinstance(self.init, str):
            return [likelihood.frame.enter(template)]
        seeds = check_random_state(self.random_state).randint(2**31 - 1, size=self.n_init - 1)
        generators = [None, *(np.random.default_rng(seed) for seed in seeds)]
        floor, log_temperature = self._floor(likelihood), float(np.log(self.temperature))
        starts = [start_from_clusters(likelihood, self.n_experts, floor, g, log_temperature) for g in generators]
        if likelihood.top_k is None or likelihood.top_k >= self.n_experts:
            return starts
        dense = likelihood.with_top_k(None)
        return [run_em(dense, s, max_iter=DENSE_STEPS, tol=self.tol, var_floor=floor).state for s in starts]

    def _floor(self, likelihood: Likelihood) -> float:
        return float(self.variance_floor) / likelihood.frame.y_scale**2

    def _run(self, likelihood: Likelihood, start: State) -> Fit:
        floor = self._floor(likelihood)
        start = State(start.gate, start.log_temperature, start.experts, np.maximum(start.var, floor))
        limits: dict[str, Any] = {"max_iter": self.max_iter, "tol": float(self.tol), "var_floor": floor}
        if self.solver == "lbfgs":
            return run_lbfgs(likelihood, start, **limits)
        propose: Callable[..., State | None] | None = None
        if self.gate_update == "profile" and self.n_experts > 1:
            propose = SegmentSearch(likelihood, floor)
        return run_em(likelihood, start, propose_gate=propose, **limits)

    def _keep(self, measure: MixingMeasure, fit: Fit) -> None:
        self.measure_ = measure
        self.beta0_, self.beta1_ = measure.beta0, measure.beta1
        self.a_, self.b_, self.var_ = measure.a, measure.b, measure.var
        self.temperature_ = measure.temperature
        self.history_ = np.array(fit.history)
        self.log_likelihood_ = float(fit.history[-1])
        self.n_iter_ = max(len(fit.history) - 1, 1)
        self.converged_ = fit.converged
        self._warn(fit)

    def _warn(self, fit: Fit) -> None:
        from sklearn.exceptions import ConvergenceWarning

        if not fit.converged:
            warnings.warn(
                f"max_iter={self.max_iter} iterations were not enough for tol={self.tol}", ConvergenceWarning, 4
            )
        empty = np.flatnonzero(fit.shares < SMALLEST_SHARE).tolist()
        if empty:
            warnings.warn(f"experts {empty} have no samples and keep what they had", ConvergenceWarning, 4)
        if self.top_k == 1 and self.n_experts > 1 and self.gate_update == "newton":
            warnings.warn(
                "with top_k=1 the likelihood does not depend on small moves of the gate: its boundaries are where they "
                "started; gate_update='profile' searches them (one feature)",
                ConvergenceWarning,
                4,
            )
        if self.learn_temperature and is_homogeneous(self.activation):
            warnings.warn(
                "learn_temperature with this gate: (c·beta1, c·beta0, c·temperature) gives the same density for every "
                "c > 0, so only beta1/temperature and beta0/temperature are estimated",
                UserWarning,
                4,
            )
