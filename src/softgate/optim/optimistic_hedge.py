"""Optimistic Hedge: mixing weights over experts, for one stream or a batch of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_number, check_sizes
from softgate.errors import ArgumentValueError, bad_type, check_choice
from softgate.optim._regimes import Entropy
from softgate.optim.domains import Simplex
from softgate.optim.optimistic_omd import MirrorLearner

__all__ = ["OptimisticHedge", "play_game"]


class OptimisticHedge(MirrorLearner):
    r"""Weights of n experts that follow their losses, with a guess of the next losses.

    .. math:: p_{t,i} \propto \hat p_{t,i} e^{-\varepsilon_t m_{t,i}}, \qquad
              \hat p_{t+1,i} \propto \hat p_{t,i} e^{-\varepsilon_t g_{t,i}}

    Logits are kept, never probabilities: no loss is too large, and an expert whose weight has underflowed can return.
    :meth:`update` takes the losses of the experts as ``grad``, of any size and sign; only differences count.

    Args:
        n: experts.
        eta: constant step size, a function of the round 1, 2, …, or ``"auto"``:
            ``min(eta_max, scale / √(1 + Σ_{s<t} ‖g_s - m_s‖²_∞))``.
        prior: first weights ``(n,)``, not negative with sum 1; a 0 stays 0. Uniform by default.
        form: ``"omd"`` adds every loss with the step of its own round, ``"ftrl"`` multiplies the sum of all by today's
            step. With a constant step they are the same.
        correction: add ``ε_t (g_t - m_t)²`` to the losses in the update.
        scale: of the automatic step; the theory has ``√log n``.
        eta_max: largest automatic step.
        hint: ``"last"`` losses, ``"zero"`` (Hedge), ``"middle"``, or a function of the round; see ``OptimisticOMD``.
        batch_shape: independent streams, logits ``(*batch_shape, n)``.
        dtype: float64 or float32.
        device: where the state lies.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a number is not allowed, or ``prior`` is no distribution.

    Example:
        >>> hedge = OptimisticHedge(3, eta=1.0)
        >>> hedge.predict().tolist() == [1 / 3] * 3
        True
        >>> hedge.update([0.0, 1.0, 2.0])
        >>> [round(p, 4) for p in hedge.predict().tolist()]  # the last losses count twice
        [0.8668, 0.1173, 0.0159]

    Paper: Chen, Zhang, Tu, Zhao and Zhang, arXiv 2302.04552 (optimistic OMD with entropy on the simplex).
    """

    def __init__(
        self,
        n: int,
        eta: float | str | Callable[[int], float] = "auto",
        prior: Tensor | Sequence[float] | None = None,
        form: str = "omd",
        correction: bool = False,
        *,
        scale: float = 1.0,
        eta_max: float = float("inf"),
        hint: str | Callable[[int], Any] = "last",
        batch_shape: Sequence[int] = (),
        dtype: torch.dtype = torch.float64,
        device: str | torch.device | None = None,
    ) -> None:
        check_sizes(n=n)
        if isinstance(eta, str):
            check_choice("eta", eta, ("auto",))
        elif not callable(eta):
            check_number("eta", eta, low=0.0, low_open=True, high_open=True)
        check_number("scale", scale, low=0.0, low_open=True, high_open=True)
        check_number("eta_max", eta_max, low=0.0, low_open=True)
        check_choice("form", form, ("omd", "ftrl"))
        if not isinstance(correction, bool):
            bad_type("correction", correction, "a bool")
        fixed = None if isinstance(eta, str) else eta
        regime = Entropy(Simplex(n), fixed, scale, eta_max, lazy=form == "ftrl", correct=correction)
        super().__init__(regime, _prior(n, prior), batch_shape, hint, dtype, device)


def _prior(n: int, prior: Any) -> Tensor:
    if prior is None:
        return torch.full((n,), 1.0 / n, dtype=torch.float64)
    try:
        weights = torch.as_tensor(prior, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        bad_type("prior", prior, f"numbers of shape ({n},)")
    if tuple(weights.shape) != (n,) or not bool((weights >= 0).all()) or abs(float(weights.sum()) - 1.0) > 1e-6:
        raise ArgumentValueError(f"prior must be {n} weights, none negative, with sum 1, got {prior!r}")
    return weights


def play_game(A: Tensor, steps: int, eta: float, hint: str = "last") -> Tensor:
    """Let two learners play a matrix game against each other and watch the duality gap of their average strategies.

    Args:
        A: payoffs ``(m, n)``, real: the row player pays ``xᵀAy`` to the column player.
        steps: rounds.
        eta: step size of both, constant.
        hint: ``"last"`` for optimistic Hedge, ``"zero"`` for Hedge.

    Returns:
        ``max_j (Aᵀx̄_t)_j - min_i (Aȳ_t)_i`` after every round t, ``(steps,)``, float64, not negative up to rounding;
        0 at an equilibrium. It falls as 1/t for ``"last"``, as 1/√t in the worst case for ``"zero"``.

    Raises:
        ArgumentTypeError: ``A`` is no tensor of real numbers.
        ArgumentValueError: ``A`` is no matrix or not finite, or a number is not allowed.

    Example:
        >>> rock_paper_scissors = torch.tensor([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])
        >>> float(play_game(rock_paper_scissors, 10, 0.5).max())
        0.0
    """
    if not isinstance(A, Tensor) or not A.dtype.is_floating_point:
        bad_type("A", A, "a floating-point tensor (m, n)")
    if A.ndim != 2 or A.numel() == 0 or not bool(A.isfinite().all()):
        raise ArgumentValueError(f"A must be a finite matrix with entries, got shape {tuple(A.shape)}")
    check_sizes(steps=steps)
    check_choice("hint", hint, ("last", "zero"))
    A = A.detach().double()
    rows, columns = (OptimisticHedge(n, eta, hint=hint, device=A.device) for n in A.shape)
    sums = [torch.zeros(n, dtype=torch.float64, device=A.device) for n in A.shape]
    gaps = torch.empty(steps, dtype=torch.float64)
    for t in range(steps):
        x, y = rows.predict(), columns.predict()
        rows.update(A @ y)
        columns.update(-(x @ A))
        sums = [sums[0] + x, sums[1] + y]
        gaps[t] = ((sums[0] @ A).max() - (A @ sums[1]).min()) / (t + 1)
    return gaps
