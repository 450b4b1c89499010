"""In-Context Linear Regression Demystified: softmax heads that learn debiased gradient descent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from softgate.diagnostics import icl
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.in_context import averaged, draw, predict, train_starts
from softgate.lab.in_context_circuit import circuit_figures, circuit_matrices, sorted_frames
from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale

__all__ = ["PAPER"]

Figures = dict[str, Any]

LENGTHS = (20, 40, 80, 160)
_ANISOTROPIC = (2.0, 1.5, 1.0, 0.5, 0.25)


def prompts_of(config: Mapping[str, Any], length: int | None = None) -> icl.LinearRegressionPrompts:
    """The prompts that ``config`` describes, at another length if one is given."""
    cov, tasks = config.get("cov"), config.get("tasks")
    return icl.LinearRegressionPrompts(
        config["d"], length or config["L"], config["sigma2"], None if cov is None else torch.tensor(cov).diag(), tasks
    )


def test_prompts(run: CellRun, length: int) -> tuple[Tensor, Tensor]:
    """Test prompts; all cells with the same data see the same ones."""
    return draw(prompts_of(run.config, length), run.config["test"], run.seed, "test", length)


def measure_layer(run: CellRun) -> Figures:
    """Train a layer from several starts; of the best, read the test loss at several lengths and the circuit inside."""
    config, data = run.config, prompts_of(run.config)
    with seeds.isolated_rng(seeds.derive(run.seed, "layer", run.cell)):
        layers = [_new_layer(config, data) for _ in range(config["starts"])]
    trained = train_starts(run, layers, data, circuit_matrices if config.get("frames") else None)
    model = trained.layer
    steps, losses = averaged(trained.losses)
    close = [end <= 1.1 * min(trained.ends) for end in trained.ends]
    figures: Figures = {
        "step": steps,
        "train_loss": losses,
        "starts": float(len(close)),
        "starts_at_best": sum(close) / len(close),
        "loss_of_starts": trained.ends,
        **(sorted_frames(trained.figures, model) if trained.figures else {}),
    }
    tokens, target = test_prompts(run, config["L"])
    errors = (predict(model, tokens) - target).square().mean(0)
    figures |= {"loss": float(errors.mean()), **{f"loss_{n}": float(error) for n, error in enumerate(errors)}}
    if config.get("lengths"):
        figures |= _by_length(run, lambda tokens: predict(model, tokens)[:, 0])
    crossed = [circuit_figures(layer, data)["cross_task"] for layer in trained.layers]
    return figures | circuit_figures(model, data) | {"cross_task_of_starts": crossed, "cross_task_least": min(crossed)}


def _new_layer(config: Mapping[str, Any], data: icl.LinearRegressionPrompts) -> icl.AttentionICL:
    attention = config.get("attention", "softmax")
    return icl.AttentionICL(config["d"], config["heads"], data.n_tasks, attention, train_length=config["L"])


def measure_baselines(run: CellRun) -> Figures:
    """Predictors without training on the test prompts of the other cells; the step of debiased descent is fitted."""
    config = run.config
    data = prompts_of(config)
    tokens, target = draw(data, config["test"], run.seed, "fit")
    eta = {
        name: _best_step(predictor(tokens, 1.0), target[:, 0])
        for name, predictor in (("gd", icl.predictors.gd), ("debiased", icl.predictors.debiased_gd))
    }
    tokens, target = test_prompts(run, config["L"])

    def error(predicted: Tensor) -> float:
        return float((predicted - target[:, 0]).square().mean())

    lam = config["d"] * config["sigma2"]
    figures: Figures = {
        "gd": error(icl.predictors.gd(tokens, eta["gd"])),
        "debiased": error(icl.predictors.debiased_gd(tokens, eta["debiased"])),
        "debiased_eta": eta["debiased"],
        "ridge": error(icl.predictors.ridge(tokens, lam)),
        "loss": error(icl.predictors.debiased_gd(tokens, eta["debiased"])),
    }
    if data.cov is not None:
        best = icl.optimal_preconditioner(data.cov, data.L, data.sigma2)
        return figures | {"preconditioned": error(icl.predictors.preconditioned_gd(tokens, best))}
    d, L, sigma2 = config["d"], config["L"], config["sigma2"]
    single, pair = icl.optimal_single_head(d, L, sigma2), icl.optimal_multi_head(d, L, sigma2)
    bayes = icl.bayes_risk_mc(d, L, sigma2, samples=config["test"], generator=seeds.generator(run.seed, "bayes"))
    figures |= _trap(d, L, sigma2)
    figures |= {"theory_single": single.risk, "theory_pair": pair.risk, "theory_eta": pair.eta, "bayes": bayes.risk}
    if config.get("lengths"):
        figures |= _by_length(run, lambda tokens: icl.predictors.debiased_gd(tokens, eta["debiased"]))
    return figures


def _trap(d: int, L: int, sigma2: float) -> Figures:
    """Curvature of the risk where two heads of one sign share the best single head's work: no direction leads down."""
    best = icl.optimal_single_head(d, L, sigma2)
    half = best.mu[0] / 2
    point = torch.tensor([half, half, best.omega[0], best.omega[0]], dtype=torch.float64)
    slope, curvature = torch.func.grad(_pair_risk), torch.func.hessian(_pair_risk)
    lowest = torch.linalg.eigvalsh(curvature(point, d, L, sigma2))[0]
    return {"trap_slope": float(slope(point, d, L, sigma2).norm()), "trap_curvature": float(lowest)}


def _pair_risk(point: Tensor, d: int, L: int, sigma2: float) -> Tensor:
    return icl.risk(point[:2], point[2:], d, L, sigma2)


def _best_step(unit: Tensor, target: Tensor) -> float:
    return float((unit * target).sum() / unit.square().sum())


def _by_length(run: CellRun, predictor: Any) -> Figures:
    losses = []
    for length in LENGTHS:
        tokens, target = test_prompts(run, length)
        losses.append(float((predictor(tokens) - target[:, 0]).square().mean()))
    named = {f"loss_at_{length}": loss for length, loss in zip(LENGTHS, losses, strict=True)}
    return {"length": [float(length) for length in LENGTHS], "loss_by_length": losses, **named}


def _cells(test: int, training: Mapping[str, Any], heads: Sequence[int], **extra: Any) -> Iterator[Cell]:
    data = {"d": 5, "L": 40, "sigma2": 0.1, "test": test, **extra}
    yield Cell("baselines", data, measure_baselines)
    for h in heads:
        starts = {1: 1, 2: 4}.get(h, 2)
        yield Cell(f"heads-{h}", {**data, **training, "heads": h, "starts": starts, "frames": h == 2})


def _further_cells(test: int, training: Mapping[str, Any]) -> Iterator[Cell]:
    data: dict[str, Any] = {"d": 5, "L": 40, "sigma2": 0.1, "test": test}
    yield Cell("linear", {**data, **training, "heads": 1, "starts": 1, "attention": "linear", "lengths": True})
    skewed = {**data, "cov": list(_ANISOTROPIC)}
    yield Cell("anisotropic-baselines", skewed, measure_baselines)
    yield Cell("anisotropic", {**skewed, **training, "heads": 2, "starts": 4})
    for heads in (2, 3, 4):
        tasks: dict[str, Any] = {"d": 6, "tasks": [[0, 1, 2], [3, 4, 5]]}
        yield Cell(f"two-tasks-heads-{heads}", {**data, **tasks, **training, "heads": heads, "starts": 3})


def _paper_cells() -> Iterator[Cell]:
    training = {"steps": 500_000, "lr": 1e-3, "batch": 256}
    for d in (5, 10, 20):
        for length in (20, 40, 80):
            data: dict[str, Any] = {"d": d, "L": length, "sigma2": 0.1, "test": 100_000}
            yield Cell(f"baselines-d{d}-L{length}", data, measure_baselines)
            for heads in (1, 2, 4, 8):
                config = {**data, **training, "heads": heads, "starts": 8, "frames": heads == 2}
                yield Cell(f"heads-{heads}-d{d}-L{length}", config)
    for n in (2, 3, 4):
        tasks = [list(range(3 * i, 3 * i + 3)) for i in range(n)]
        data = {"d": 3 * n, "L": 40, "sigma2": 0.1, "test": 100_000, "tasks": tasks}
        for heads in (n, n + 1, 2 * n):
            yield Cell(f"tasks-{n}-heads-{heads}", {**data, **training, "heads": heads, "starts": 8})


_SMOKE = Scale(
    cells=tuple(_cells(8000, {"steps": 3000, "lr": 0.01, "batch": 256}, (1, 2))),
    minutes=0.7,
    note="One and two heads, 3000 steps of Adam with learning rate 0.01 and a cosine to 0.",
)
_TRAINING = {"steps": 6000, "lr": 0.01, "batch": 256}
_LAPTOP = Scale(
    cells=(*_cells(20_000, _TRAINING, (1, 2, 4), lengths=True), *_further_cells(20_000, _TRAINING)),
    minutes=6.0,
    note="d = 5, L = 40, noise variance 0.1; 6000 steps of Adam with learning rate 0.01 and a cosine to 0 in place of "
    "5·10⁵ steps with 0.001: the loss and the step size reach the same end, the scale ω is still on its slow way to 0. "
    "Two tasks: d = 6, each on three coordinates.",
)
_PAPER = Scale(
    cells=tuple(_paper_cells()),
    minutes=24 * 60.0,
    hardware="16 CPU cores for a day, or 1 GPU",
    note="Adam with learning rate 0.001 for 5·10⁵ steps; d of 5, 10 and 20, L of 20, 40 and 80, up to eight heads and "
    "four tasks.",
)

_CLAIMS = (
    Claim(
        id="two-heads-beat-one",
        statement="Two heads predict much better than the best single one.",
        paper_figure="curves",
        source="section on risks",
        relation='loss["heads-1"] > 1.4 * loss["heads-2"]',
        per_scale={
            "smoke": 'loss["heads-2"] <= 0.3 and loss["heads-2"] <= 0.75 * loss["heads-1"]',
            "paper": 'loss["heads-1-d5-L40"] > 1.4 * loss["heads-2-d5-L40"]',
        },
    ),
    Claim(
        id="diagonal-key-query",
        statement="Key-query matrices become diagonal on the covariates with one common entry, and 0 in the labels' "
        "row.",
        paper_figure="heat maps",
        source="figure on emergent patterns",
        relation='off_diagonal["heads-2"] < 0.05 and homogeneity["heads-2"] < 0.1 and label_row["heads-2"] < 0.05',
        per_scale={
            "laptop": 'off_diagonal["heads-2"] < 0.05 and homogeneity["heads-2"] < 0.1 and '
            'label_row["heads-2"] < 0.005',
            "paper": 'off_diagonal["heads-2-d5-L40"] < 0.05 and homogeneity["heads-2-d5-L40"] < 0.1',
        },
        note="Largest off-diagonal entry; spread of the diagonal over its mean; largest entry of the row that would "
        "let labels attract attention.",
    ),
    Claim(
        id="zero-sum",
        statement="The last entries of the output-value matrices sum to 0 over the heads, with the sign of the heads' "
        "key-query entries.",
        paper_figure="heat maps",
        source="figure on emergent patterns",
        relation='zero_sum["heads-2"] < 0.05 and paired["heads-2"] == 1 and positive_heads["heads-2"] == 1 and '
        'negative_heads["heads-2"] == 1',
        per_scale={
            "paper": 'zero_sum["heads-2-d5-L40"] < 0.05 and paired["heads-2-d5-L40"] == 1 and '
            'paired["heads-8-d5-L40"] == 1'
        },
    ),
    Claim(
        id="debiased-gradient-descent",
        statement="Together the heads are one step of gradient descent on centred covariates, with the step that "
        "theory gives.",
        paper_figure="equal (theorem, curves)",
        source="section on the effective predictor",
        relation='abs(loss["heads-2"] / debiased["baselines"] - 1) < 0.03 and '
        'abs(eta["heads-2"] - theory_eta["baselines"]) < 0.03',
        per_scale={"paper": 'abs(loss["heads-2-d5-L40"] / debiased["baselines-d5-L40"] - 1) < 0.03'},
        scales=("laptop", "paper"),
        note="The step of the baseline is fitted to prompts of its own.",
    ),
    Claim(
        id="every-start-ends-alike",
        statement="From every random start training ends in this circuit.",
        paper_figure="always (all runs shown)",
        source="section on emergent patterns",
        relation='starts_at_best["heads-2"] == 1 and starts_at_best["heads-4"] == 1',
        per_scale={"paper": 'starts_at_best["heads-2-d5-L40"] == 1 and starts_at_best["heads-4-d5-L40"] == 1'},
        scales=("laptop", "paper"),
        note="Two heads whose random starts have one sign stay at the best single head (see the next claim). "
        "Each further head makes such a start rarer.",
    ),
    Claim(
        id="one-sign-is-a-trap",
        statement="Two heads of one sign that share the work of the best single head are stationary, and no direction "
        "has negative curvature: descent does not leave.",
        paper_figure="not in the paper",
        source="this project's addition, from the risk formula",
        relation='trap_slope["baselines"] < 1e-9 and trap_curvature["baselines"] > -1e-9',
        scales=("smoke", "laptop"),
    ),
    Claim(
        id="more-heads-share-roles",
        statement="Further heads share the two roles or do nothing; the loss is that of two.",
        paper_figure="curves",
        source="section on more heads",
        relation='abs(loss["heads-4"] / loss["heads-2"] - 1) < 0.01 and paired["heads-4"] == 1',
        per_scale={"paper": 'abs(loss["heads-8-d5-L40"] / loss["heads-2-d5-L40"] - 1) < 0.01'},
        scales=("laptop", "paper"),
    ),
    Claim(
        id="constant-factor-of-bayes",
        statement="The risk of two heads is within a constant factor of the Bayes risk.",
        paper_figure="theorem",
        source="section on risks",
        relation='bayes["baselines"] < loss["heads-2"] < 3 * bayes["baselines"]',
        per_scale={"paper": 'bayes["baselines-d5-L40"] < loss["heads-2-d5-L40"] < 3 * bayes["baselines-d5-L40"]'},
    ),
    Claim(
        id="length-generalisation",
        statement="Softmax attention trained at one length gains from longer prompts; linear attention breaks down.",
        paper_figure="curves",
        source="section on longer prompts",
        relation='loss_at_160["heads-2"] < loss_at_80["heads-2"] < loss_at_40["heads-2"] < loss_at_20["heads-2"] and '
        'loss_at_160["linear"] > loss_at_80["linear"] > loss_at_40["linear"]',
        scales=("laptop",),
        note="Trained with 40 points, tested with 20 to 160. Linear attention divides its scores by 40, whatever the "
        "prompt's length.",
    ),
    Claim(
        id="anisotropic-preconditioner",
        statement="With anisotropic covariates the heads learn preconditioned gradient descent.",
        paper_figure="heat maps",
        source="section on anisotropic covariates",
        relation='preconditioner_error["anisotropic"] < 0.05 and step_off_diagonal["anisotropic"] < 0.1 and '
        'loss["anisotropic"] < 1.03 * preconditioned["anisotropic-baselines"] and '
        'loss["anisotropic"] < 0.85 * gd["anisotropic-baselines"]',
        direction='preconditioner_error["anisotropic"] < 0.15 and loss["anisotropic"] < gd["anisotropic-baselines"]',
        scales=("laptop",),
        note="Variances 2, 1.5, 1, 0.5, 0.25. The learnt Σ μ KQ is compared with the best preconditioner of one step, "
        "entry by entry.",
    ),
    Claim(
        id="head-specialisation",
        statement="With two heads per task, each task gets a pair of its own.",
        paper_figure="heat maps",
        source="section on several tasks",
        relation='cross_task["two-tasks-heads-4"] < 0.01 and loss["two-tasks-heads-4"] < 0.22',
        direction='cross_task_least["two-tasks-heads-4"] < 0.01 and loss["two-tasks-heads-4"] < 0.22',
        scales=("laptop",),
        note="Largest key-query scale of a head on the coordinates of the task that it serves less, in the best start; "
        "in direction: in at least one of three starts. Heads that serve both tasks reach the same loss.",
    ),
    Claim(
        id="superposition",
        statement="With fewer heads than that, some serve several tasks, at nearly the same loss; as many heads as "
        "tasks share one pair, at a higher loss.",
        paper_figure="heat maps",
        source="section on several tasks",
        relation='loss["two-tasks-heads-3"] < 1.05 * loss["two-tasks-heads-4"] and '
        'cross_task["two-tasks-heads-3"] > 0.02 and loss["two-tasks-heads-2"] > 1.15 * loss["two-tasks-heads-4"]',
        scales=("laptop",),
    ),
)

_PLOTS = (
    Plot("emergence", "frames", y="kq_1|kq_2|ov_1|ov_2", x="frame_step", xlabel="step", cells=("heads-2",),
         title="KQ becomes ±ωI on the covariates, OV ±μ in its last entry"),
    Plot("training", "lines", y="train_loss", x="step", title="Loss while training", xlabel="step",
         ylabel="squared error (summed over tasks)", log="y"),
    Plot("length", "lines", y="loss_by_length", x="length", title="Trained with 40 points", log="xy",
         xlabel="labelled points in the prompt", ylabel="squared error"),
    Plot("starts", "lines", y="loss_of_starts", title="Where each random start ends", xlabel="start",
         ylabel="training loss at the end", cells=("heads-2", "heads-4")),
    Plot("loss", "bars", y="loss", title="Test loss", ylabel="squared error"),
    Plot("preconditioner", "lines", y="step_diagonal|best_diagonal", title="Anisotropic: learnt step and theory",
         xlabel="coordinate (variance 2, 1.5, 1, 0.5, 0.25)", ylabel="diagonal entry", cells=("anisotropic",)),
)  # fmt: skip

PAPER = Paper(
    slug="in-context-linear-regression",
    title="In-Context Linear Regression Demystified: Training Dynamics and Mechanistic Interpretability of Multi-Head "
    "Softmax Attention",
    arxiv="2503.12734",
    date="2025-03",
    venue="ICML 2025",
    summary="One layer of softmax attention, trained on random linear-regression prompts, always ends in the same "
    "circuit. Its key-query matrices are multiples of the identity on the covariates, its output-value matrices read "
    "the label alone, and the heads' weights sum to zero. Heads of opposite sign together are one step of gradient "
    "descent on centred covariates, which no single head can do, and which carries over to longer prompts.",
    claims=_CLAIMS,
    scales={"smoke": _SMOKE, "laptop": _LAPTOP, "paper": _PAPER},
    measure=measure_layer,
    plots=_PLOTS,
    methods=("diagnostics.icl_attention",),
    code="Y-Agent/ICL_linear (not obtained; written from the paper alone)",
    notes=(
        "The paper shows curves and heat maps, no numbers; the thresholds are those of this project's pilot runs, "
        "fixed before the runs shown.",
        "Every layer is trained from several starts, and the one with the lowest training loss is shown: see the claim "
        "that all starts end alike.",
        "The risk formulas are leading orders in 1/L and some 10 % too optimistic at L = 40; trained layers are "
        "therefore compared with debiased gradient descent on the same test prompts.",
        "The scale ω goes on shrinking long after the loss is flat: what is compared is the step Σ μω.",
        "The last column of KQ and all but the last row of OV never enter a prediction and keep their random start.",
    ),
)
