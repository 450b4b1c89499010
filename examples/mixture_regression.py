"""Fit local regressions that a softmax gate chooses among, and look at what the gate's parameters mean.

    python examples/mixture_regression.py [--samples N] [--seed S]

Needs scikit-learn: pip install 'softgate[data]'. The data are two crossing lines; which one a
sample is on depends on x.
"""

from __future__ import annotations

import argparse

import numpy as np

from softgate.routing import GaussianMoE, MixingMeasure, gate_identifiability, hellinger, voronoi_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    truth = MixingMeasure(beta0=[-8, 0], beta1=[25, 0], a=[-20, 20], b=[15, -5], var=[0.09, 0.16])
    rng = np.random.default_rng(options.seed)
    x = rng.uniform(size=(options.samples, 1))
    y = truth.sample(x, rng)

    model = GaussianMoE(n_experts=2).fit(x, y)
    print(f"{model.n_iter_} iterations, log-likelihood {model.log_likelihood_:.1f}, R2 {model.score(x, y):.3f}")
    for slope, intercept, var in zip(model.a_[:, 0], model.b_, model.var_, strict=True):
        print(f"expert: y = {slope:.2f} x + {intercept:.2f}, standard deviation {var**0.5:.2f}")
    grid = np.linspace(0, 1, 101)[:, None]
    share = model.predict_gate(grid)
    switch = grid[np.abs(share[:, 0] - share[:, 1]).argmin(), 0]
    print(f"the gate switches near x = {switch:.2f}, the true one at 0.32")
    print(f"Voronoi loss {voronoi_loss(model, truth):.3f}, Hellinger distance {hellinger(model, truth, grid):.4f}")

    # With one selected expert the boundary is all that is determined of the gate, and EM cannot move it.
    hard = GaussianMoE(n_experts=2, top_k=1, gate_update="profile").fit(x, truth.with_options(top_k=1).sample(x, rng))
    boundary = -(hard.beta0_[0] - hard.beta0_[1]) / (hard.beta1_[0, 0] - hard.beta1_[1, 0])
    print(f"hard gate: boundary {boundary:.4f}")

    for activation in (None, "tanh"):
        report = gate_identifiability(truth.with_options(activation=activation), x)
        print(f"gate with activation {activation or 'none'}: {report.message}")


if __name__ == "__main__":
    main()
