"""Is Temperature Sample Efficient for Softmax Gaussian Mixture of Experts? With a linear gate it is no parameter."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from softgate.lab.cell import CellRun
from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale
from softgate.lab.rate_study import log_sizes, rate_figures, study
from softgate.lab.tasks.expert_mixture import ExpertMixture
from softgate.routing import GaussianMoE, MixingMeasure, gate_identifiability, hellinger, voronoi_loss

__all__ = ["PAPER"]

Figures = Mapping[str, float | Sequence[float]]

_PARAMETERS: dict[str, Any] = {
    "beta0": [-0.3, 0], "beta1": [2, 0], "a": [-2, 1.5], "b": [1, -1], "var": [0.25, 0.16], "temperature": 0.5,
}  # fmt: skip


def task_of(gate: str) -> ExpertMixture:
    """Data of the gate called ``gate``: "linear", or an activation."""
    truth = MixingMeasure(**_PARAMETERS, activation=None if gate == "linear" else gate)
    return ExpertMixture(truth, -3.0, 3.0)


def fit(task: ExpertMixture, config: Mapping[str, Any], n: int, seed: int) -> GaussianMoE:
    """Fit one data set, from a start whose noise does not depend on n."""
    k, activation = config["k"], task.truth.activation
    start = task.noisy_start(k, seed)
    model = GaussianMoE(
        k,
        gate="dense_to_sparse" if activation is None else "activation",
        activation=activation,
        temperature=start.temperature,
        learn_temperature=True,
        init=start,
        max_iter=config.get("max_iter", 1000),
    )
    with warnings.catch_warnings():
        # that a linear gate's temperature is undetermined is what is measured here
        warnings.simplefilter("ignore")
        return model.fit(*task.draw(n, seed))


def measure_rates(run: CellRun) -> Figures:
    """As many experts as the truth: errors of all parameters, and of their quotients by the temperature."""
    config = run.config
    task = task_of(config["gate"])
    grid, truth = task.grid(50), task.truth

    def once(n: int, seed: int) -> dict[str, float]:
        model = fit(task, config, n, seed).measure_
        by_temperature = {
            name: getattr(model, name)[0] / model.temperature - getattr(truth, name)[0] / truth.temperature
            for name in ("beta1", "beta0")
        }
        return {
            "beta1": float(abs(model.beta1[0, 0] - truth.beta1[0, 0])),
            "tau": abs(model.temperature - truth.temperature),
            "beta1_over_tau": float(np.abs(by_temperature["beta1"]).max()),
            "beta0_over_tau": float(np.abs(by_temperature["beta0"]).max()),
            "experts": float(np.abs(model.a - truth.a).mean() + np.abs(model.b - truth.b).mean()),
            "var": float(np.abs(model.var - truth.var).mean()),
            "hellinger": hellinger(model, truth, grid),
        }

    found = study(run, config["sizes"], config["replicates"], once)
    figures: dict[str, Any] = {"n": [float(n) for n in config["sizes"]]}
    for name, losses in found.items():
        figures |= rate_figures(name, config["sizes"], losses, "median")
    return {**figures, **measure_rank(run)}


def measure_over(run: CellRun) -> Figures:
    """One expert too many: the density, and the loss of the theorem."""
    config = run.config
    task = task_of(config["gate"])
    grid = task.grid(50)
    kind = "dense_to_sparse" if config["gate"] == "linear" else "activation_over"

    def once(n: int, seed: int) -> dict[str, float]:
        model = fit(task, config, n, seed)
        return {
            "hellinger": hellinger(model, task.truth, grid),
            "loss": voronoi_loss(model, task.truth, kind, pin="as_given"),
            "tau": abs(model.temperature_ - task.truth.temperature),
        }

    found = study(run, config["sizes"], config["replicates"], once)
    figures: dict[str, Any] = {"n": [float(n) for n in config["sizes"]]}
    for name, losses in found.items():
        figures |= rate_figures(name, config["sizes"], losses, "median")
    return figures


def measure_rank(run: CellRun) -> Figures:
    """No fit: how singular the Jacobian of the true gate's log-odds by (β1, β0, log temperature) is."""
    task = task_of(run.config["gate"])
    report = gate_identifiability(task.truth, task.draw(100, run.seed)[0])
    # a plot on a logarithmic axis has no place for 0
    return {"singular_ratio": max(report.ratio, 1e-18), "identified": float(report.temperature_identified)}


def _rates(gates: Sequence[str], sizes: Sequence[int], replicates: int) -> tuple[Cell, ...]:
    return tuple(
        Cell(gate, {"gate": gate, "k": 2, "sizes": list(sizes), "replicates": replicates}, measure_rates)
        for gate in gates
    )


def _over(gate: str, sizes: Sequence[int], replicates: int, **config: Any) -> Cell:
    cell = {"gate": gate, "k": 3, "sizes": list(sizes), "replicates": replicates, **config}
    return Cell(f"over_{gate}", cell, measure_over)


_SMOKE = Scale(
    cells=_rates(("linear", "sigmoid", "tanh"), (200, 2000, 20_000), 8),
    minutes=0.7,
    note="Three sample sizes, eight replicates.",
)
_LAPTOP = Scale(
    cells=(
        *_rates(("linear", "relu", "sigmoid", "tanh", "gelu"), (200, 600, 2000, 6000, 20_000, 60_000), 40),
        _over("tanh", (200, 600, 2000, 6000, 20_000), 12, max_iter=300),
    ),
    minutes=4.0,
    note="Five gates, six sample sizes, 40 replicates; one expert too many with tanh: five sizes up to 20,000, 12 "
    "replicates, at most 300 iterations.",
)
_PAPER = Scale(
    cells=(
        *_rates(("linear", "relu", "sigmoid", "tanh", "gelu"), log_sizes(100, 100_000, 100), 40),
        _over("tanh", log_sizes(100, 100_000, 100), 40),
        _over("linear", log_sizes(100, 100_000, 100), 40),
    ),
    minutes=600.0,
    hardware="a machine with seven cores for half a day (the cells run side by side)",
    note="100 sample sizes, 40 replicates, exactly and over-specified.",
)

_ACTIVATED = ("sigmoid", "tanh", "gelu")
_ALL = ("linear", "relu", *_ACTIVATED)


def _between(figures: Sequence[str], cells: Sequence[str], low: float, high: float) -> str:
    """A relation that holds if every figure of every cell lies in [low, high]."""
    return " and ".join(f'{low} <= {figure}["{cell}"] <= {high}' for figure in figures for cell in cells)


def _below(figures: Sequence[str], cells: Sequence[str], bound: float) -> str:
    named = [f'{figure}["{cell}"]' for figure in figures for cell in cells]
    return f"max({', '.join(named)}) < {bound}"


_CLAIMS = (
    Claim(
        id="linear-gate-has-no-rate",
        statement="With a linear gate slopes and temperature do not converge, however many samples there are; their "
        "quotient does.",
        paper_figure="no polynomial rate, possibly as slow as 1/log n",
        source="Theorem 1 and the minimax bound after it",
        relation=_between(("slope_beta1",), ("linear",), -0.15, 0.15) + ' and slope_beta1_over_tau["linear"] < -0.3',
        per_scale={"smoke": 'slope_beta1["linear"] > -0.2 and slope_beta1_over_tau["linear"] < -0.3'},
        direction='slope_beta1["linear"] > slope_beta1_over_tau["linear"] + 0.2',
        note="(cβ1, cβ0, cτ) gives the same density for every c > 0: the error stays at that of the start.",
    ),
    Claim(
        id="relu-gate-has-no-rate",
        statement="The same with ReLU, which is positively homogeneous.",
        paper_figure="not in the paper; the scaling argument says so",
        source="our own derivation",
        relation=_between(("slope_beta1",), ("relu",), -0.15, 0.15) + ' and slope_beta1_over_tau["relu"] < -0.3',
        direction='slope_beta1["relu"] > slope_beta1_over_tau["relu"] + 0.2',
        scales=("laptop", "paper"),
    ),
    Claim(
        id="activation-restores-the-rate",
        statement="With a sigmoid, tanh or GELU inside the gate, slopes and temperature converge at n^(-1/2).",
        paper_figure="all parameters at n^(-1/2) up to logarithms",
        source="Theorem 4",
        relation=_between(("slope_beta1", "slope_tau"), _ACTIVATED, -0.65, -0.40),
        per_scale={"smoke": _below(("slope_beta1", "slope_tau"), ("sigmoid", "tanh"), -0.35)},
        direction=_below(("slope_beta1", "slope_tau"), ("sigmoid", "tanh"), -0.25),
        note="Medians over replicates: with few samples the slope of a sigmoid has a heavy tail.",
    ),
    Claim(
        id="experts-are-fine",
        statement="The experts' parameters converge at n^(-1/2) whatever the gate.",
        paper_figure="n^(-1/2)",
        source="Theorems 1 and 4",
        relation=_below(("slope_experts", "slope_var"), _ALL, -0.35),
        per_scale={"smoke": _below(("slope_experts", "slope_var"), ("linear", "sigmoid", "tanh"), -0.35)},
        direction=_below(("slope_experts", "slope_var"), ("linear", "sigmoid", "tanh"), -0.2),
    ),
    Claim(
        id="density-is-fine",
        statement="The density converges at n^(-1/2) for every gate, also where the parameters do not.",
        paper_figure="Hellinger distance O((log n / n)^(1/2))",
        source="Propositions 1 and 2",
        relation=_between(("slope_hellinger",), _ALL, -0.65, -0.40),
        direction=_below(("slope_hellinger",), _ALL, -0.3),
        scales=("laptop", "paper"),
    ),
    Claim(
        id="over-density-rate",
        statement="With one expert too many and tanh the density still converges at n^(-1/2).",
        paper_figure="Hellinger distance O((log n / n)^(1/2))",
        source="Theorem 5 and the density's rate before it",
        relation=_between(("slope_hellinger",), ("over_tanh",), -0.65, -0.40),
        direction='slope_hellinger["over_tanh"] < -0.3',
        scales=("laptop", "paper"),
        note="The slopes of the Voronoi loss and of the temperature are reported, not required: single fits dominate.",
    ),
    Claim(
        id="temperature-identified",
        statement="The temperature is a parameter of the gate with a smooth, non-homogeneous activation and of no "
        "linear gate.",
        paper_figure="the identity fails the condition on the activation; sigmoid, tanh and GELU satisfy it",
        source="Definition of strong identifiability of the activation",
        relation='singular_ratio["linear"] < 1e-8 and min(singular_ratio["sigmoid"], singular_ratio["tanh"]) > 1e-8',
        note="Singular values of the Jacobian of the log-odds at the truth, 100 inputs.",
    ),
)

_PLOTS = (
    Plot("beta1", "lines", "beta1", "Gate slope: flat with linear and ReLU gates", x="n", xlabel="sample size",
         ylabel="median error of the slope (band: quartiles)", log="xy", cells=_ALL),
    Plot("tau", "lines", "tau", "Temperature", x="n", xlabel="sample size",
         ylabel="median error of the temperature", log="xy", cells=_ALL),
    Plot("ratio", "lines", "beta1_over_tau", "Slope over temperature, which every gate determines", x="n",
         xlabel="sample size", ylabel="median error of the quotient", log="xy", cells=_ALL),
    Plot("lines_linear", "lines", "beta1|line_beta1|beta1_over_tau|line_beta1_over_tau",
         "Linear gate: errors and fitted lines", x="n", xlabel="sample size", ylabel="median error", log="xy",
         cells=("linear",)),
    Plot("lines_tanh", "lines", "beta1|line_beta1|tau|line_tau", "tanh gate: errors and fitted lines", x="n",
         xlabel="sample size", ylabel="median error", log="xy", cells=("tanh",)),
    Plot("hellinger", "lines", "hellinger", "The density converges with every gate", x="n", xlabel="sample size",
         ylabel="median Hellinger distance", log="xy", cells=(*_ALL, "over_tanh")),
    Plot("slopes", "bars", "slope_beta1|slope_tau|slope_beta1_over_tau|slope_hellinger",
         "Slopes on log-log axes, 95 % bootstrap intervals", ylabel="slope", cells=_ALL, reference={"-1/2": -0.5}),
    Plot("over", "lines", "loss|tau|hellinger", "One expert too many, tanh", x="n", xlabel="sample size",
         ylabel="median", log="xy", cells=("over_tanh", "over_linear")),
)  # fmt: skip

PAPER = Paper(
    slug="temperature-gating-moe",
    title="Is Temperature Sample Efficient for Softmax Gaussian Mixture of Experts?",
    arxiv="2401.13875",
    date="2024-01",
    venue="ICML 2024",
    summary="Dense-to-sparse gates divide their logits by a temperature. Taken as a parameter and fitted by maximum "
    "likelihood, temperature and gate slopes interact, so that no polynomial rate can be guaranteed for them, although "
    "the density converges at n^(-1/2). A suitable non-linear activation of the scores, inside the gate and before the "
    "bias, removes the interaction and restores polynomial rates.",
    claims=_CLAIMS,
    scales={"smoke": _SMOKE, "laptop": _LAPTOP, "paper": _PAPER},
    measure=measure_rates,
    plots=_PLOTS,
    methods=("routing.dense_to_sparse_gate", "routing.GaussianMoE", "routing.gate_identifiability"),
    code="none found",
    notes=(
        "The paper's simulation (true parameters, sample sizes, fitted slopes) was not seen; the set-up is ours: x "
        "uniform on [-3, 3], where the activations bend, two experts, temperature 0.5.",
        "Starts are the truth plus noise of 0.1 on every free parameter, whatever n is: noise that shrinks with n "
        "would fake a rate for the direction that the data do not determine.",
        "Fitted by EM with Fisher scoring for the gate and its temperature; L-BFGS over all parameters reaches the "
        "same maxima in more passes over the data.",
        "A learned temperature of a linear router is a redundant scale; a scheduled one is an annealing device.",
    ),
)
