"""The theorems about comp-sum losses as numbers: best risks against a search, bounds against random draws."""

from __future__ import annotations

import torch
from torch import Tensor

from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.losses import comp_sum_conditional_risk, comp_sum_loss, h_consistency_bound, minimizability_gap_bound

__all__ = ["measure_theory"]


def measure_theory(run: CellRun) -> dict[str, float | list[float]]:
    """Compare formulas with brute force for every order in ``run.config["taus"]``.

    The configuration holds ``taus``, ``classes`` (numbers of classes) and ``draws``.

    Returns:
        ``risk_error``: largest distance of the best conditional risk from the risk that L-BFGS reaches (up to order
            1.5).
        ``violation``: largest amount by which the H-consistency bound is broken over all draws (0 if it holds).
        ``slack``: largest over the orders up to 1 of the smallest excess over bound found, minus 1 (0: tight).
        ``gap_curve`` and ``constant_curve`` over ``tau``: the bound of the minimizability gap with 10 classes, and the
        factor of the excess in the bound's simple form.
    """
    taus, stream = run.config["taus"], seeds.generator(run.seed, "theory")
    risk_error = violation = slack = 0.0
    for tau in taus:
        if tau <= 1.5:  # nearer to 2 the best scores run away and no search arrives
            labels = _distributions(64, 5, stream)
            found = comp_sum_loss(_search(labels, tau), labels, tau=tau, reduction="none")
            risk_error = max(risk_error, float((found - comp_sum_conditional_risk(labels, tau)).abs().max()))
        tightest = float("inf")
        for classes in run.config["classes"]:
            labels = _distributions(run.config["draws"], classes, stream)
            scores = torch.randn(labels.shape, generator=stream, dtype=torch.float64) * 2.0
            # scores that tie the two most probable classes and fit the others come closest to the bound
            pair = labels.topk(2).indices
            tied = labels.scatter(1, pair, labels.gather(1, pair).mean(1, keepdim=True).expand(-1, 2)).log() / max(
                2.0 - tau, 0.1
            )
            for tried in (scores, tied.scatter_add(1, pair[:, 1:], torch.full_like(labels[:, :1], 1e-9))):
                broken, ratio = _against_bound(labels, tried, tau)
                violation, tightest = max(violation, broken), min(tightest, ratio)
        slack = max(slack, tightest - 1.0) if tau <= 1.0 else slack
        run.log(taus.index(tau) + 1, len(taus), violation=violation)
    bounds = [h_consistency_bound(tau, 10) for tau in taus]
    return {
        "risk_error": risk_error,
        "violation": violation,
        "slack": slack,
        "tau": list(taus),
        "gap_curve": [minimizability_gap_bound(2.0, tau, n=10, score_bound=3.0) for tau in taus],
        "constant_curve": [bound.simple(1.0) for bound in bounds],
    }


def _distributions(rows: int, classes: int, stream: torch.Generator) -> Tensor:
    weights = torch.rand(rows, classes, generator=stream, dtype=torch.float64) ** 3 + 1e-3
    return weights / weights.sum(1, keepdim=True)


def _search(labels: Tensor, tau: float) -> Tensor:
    scores = torch.zeros_like(labels, requires_grad=True)
    search = torch.optim.LBFGS([scores], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = comp_sum_loss(scores, labels, tau=tau, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    search.step(closure)  # type: ignore[no-untyped-call]
    return scores.detach()


def _against_bound(labels: Tensor, scores: Tensor, tau: float) -> tuple[float, float]:
    """By how much the bound is broken, and the smallest excess loss over what the regret costs at least."""
    excess = comp_sum_loss(scores, labels, tau=tau, reduction="none") - comp_sum_conditional_risk(labels, tau)
    regret = labels.amax(1) - labels.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)
    least = h_consistency_bound(tau, labels.shape[1]).transform(regret)
    counted = regret > 0.01
    ratio = float((excess[counted] / least[counted]).min()) if bool(counted.any()) else float("inf")
    return max(0.0, float((least - excess).max())), ratio
