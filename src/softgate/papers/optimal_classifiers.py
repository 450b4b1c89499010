"""Wide and deep networks as classifiers: nearest neighbour, majority vote, or a consistent singular kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale

if TYPE_CHECKING:
    from softgate.lab.cell import CellRun
    from softgate.lab.paper import Figures

#: The activation with the right order for each number of coordinates, and the depths of the authors' script.
_OPTIMAL = {2: "2d_opt", 3: "3d_opt", 5: "5d_opt", 9: "9d_opt"}
_SINES = {2: ("sine_1", 100), 3: ("sine_2.676", 100), 5: ("sine_6.13539", 50), 9: ("sine_13.8258", 50)}
_ORDERS = {"2d_opt": 0.5, "3d_opt": 1.0, "5d_opt": 2.0, "9d_opt": 4.0}


def measure_accuracy(run: CellRun) -> Figures:
    """Accuracies beside the Bayes rule; :func:`softgate.lab.kernel_classification.measure_accuracy`."""
    from softgate.lab import kernel_classification  # needs scikit-learn, which listing the papers must not

    return kernel_classification.measure_accuracy(run)


def measure_orders(run: CellRun) -> Figures:
    """Orders of the singularities; :func:`softgate.lab.kernel_classification.measure_orders`."""
    from softgate.lab import kernel_classification

    return kernel_classification.measure_orders(run)


def measure_limits(run: CellRun) -> Figures:
    """The other two classifiers; :func:`softgate.lab.kernel_classification.measure_limits`."""
    from softgate.lab import kernel_classification

    return kernel_classification.measure_limits(run)


def measure_finite_network(run: CellRun) -> Figures:
    """A trained network; :func:`softgate.lab.kernel_classification.measure_finite_network`."""
    from softgate.lab import kernel_classification

    return kernel_classification.measure_finite_network(run)


def _deep(dim: int, rows: int, tests: int, seeds: int | None = None) -> Cell:
    """NNGP kernels at the authors' depths, solved."""
    sine, depth = _SINES[dim]
    models: dict[str, Any] = {
        "optimal": {"activation": _OPTIMAL[dim], "depth": 100},
        "sine": {"activation": sine, "depth": depth},
        "erf": {"activation": "erf", "depth": 200},
    }
    return Cell(f"{dim}d", {"dim": dim, "rows": rows, "tests": tests, "models": models}, seeds=seeds)


def _limit(dim: int, rows: int, tests: int) -> Cell:
    """The limit of infinite depth."""
    config = {"dim": dim, "rows": rows, "tests": tests, "models": {"optimal": {"activation": _OPTIMAL[dim]}}}
    return Cell(f"{dim}d-{rows}", config)


_ORDER_CELL = Cell("orders", {"depth": 200, "activations": list(_ORDERS)}, measure=measure_orders, seeds=1)


def _limits_cell(depth: int, rows: int, tests: int) -> Cell:
    config = {"dim": 3, "rows": rows, "tests": tests, "depth": depth, "hermite_depth": 10}
    return Cell("limits", config, measure=measure_limits, seeds=1)


def _finite_cell(rows: int, width: int, depth: int, steps: int) -> Cell:
    config = {"rows": rows, "tests": 2000, "width": width, "depth": depth, "steps": steps, "lr": 3e-3, "batch": 128}
    return Cell("network", config, measure=measure_finite_network, seeds=1)


def _all(pattern: str, keys: tuple[Any, ...]) -> str:
    return " and ".join(pattern.replace("KEY", str(key)) for key in keys)


_DIMS = tuple(_OPTIMAL)
_ORDERS_HOLD = " and ".join(
    f'abs(nngp_{name}["orders"] + {order}) < 0.01 and abs(ntk_{name}["orders"] + {order + 1}) < 0.02'
    for name, order in _ORDERS.items()
)

_CLAIMS = (
    Claim(
        id="orders",
        statement="The kernel of a deep network with a = E[φ']², b = E[φ'²] has a singularity of order "
        "-log a / log b in 1 - ξ: 1/2, 1, 2 and 4 for the activations designed for 2, 3, 5 and 9 coordinates.",
        paper_figure="order -4 log E[φ'] / log E[φ'²] in the distance",
        source="theorem on singular kernels; examples of activations",
        relation=_ORDERS_HOLD,
        note="depth 200; at finite depth the NTK has one order more near the point, which is checked too",
    ),
    Claim(
        id="better-than-nearest",
        statement="In two coordinates the network with the right order is well above the nearest neighbour.",
        paper_figure="curves, not numbers",
        source="figure on Dirichlet data, 2 coordinates",
        relation='nearest["2d"] + 0.05 < optimal["2d"]',
        direction='nearest["2d"] < optimal["2d"]',
    ),
    Claim(
        id="as-the-hilbert-estimate",
        statement="It classifies as the Hilbert estimate does, the consistent vote with weights |x - x'|^-d.",
        paper_figure="curves, not numbers",
        source="corollary on consistency",
        relation=_all('abs(optimal["KEYd"] - hilbert["KEYd"]) < 0.02', (2, 3)),
    ),
    Claim(
        id="bayes-above-majority-below",
        statement="The Bayes rule is above all, the majority vote below all.",
        paper_figure="curves, not numbers",
        source="figures on Dirichlet data",
        relation=_all(
            'bayes["KEYd"] >= max(optimal["KEYd"], sine["KEYd"], erf["KEYd"], hilbert["KEYd"], nearest["KEYd"]) - 0.01 '
            'and majority["KEYd"] < min(optimal["KEYd"], sine["KEYd"], erf["KEYd"], hilbert["KEYd"], nearest["KEYd"])',
            (2, 3),
        ),
    ),
    Claim(
        id="consistent",
        statement="With the right order the gap to the best possible accuracy shrinks as the data grow.",
        paper_figure="error tends to the Bayes error",
        source="corollary on consistency",
        relation=_all('gap_optimal["KEYd-10000"] < gap_optimal["KEYd-300"]', _DIMS),
        direction=_all('gap_optimal["KEYd-10000"] < gap_optimal["KEYd-300"]', (2,)),
        scales=("laptop", "paper"),
        note="infinite depth; the theory promises the limit, not that every step goes down",
    ),
    Claim(
        id="nearest-is-not",
        statement="The gap of the nearest neighbour does not close.",
        paper_figure="up to twice the Bayes error",
        source="introduction",
        relation='gap_nearest["2d-10000"] > 0.5 * gap_nearest["2d-300"] and '
        'gap_nearest["2d-10000"] > gap_optimal["2d-10000"]',
        scales=("laptop", "paper"),
    ),
    Claim(
        id="relu-is-the-majority-vote",
        statement="A ReLU network becomes the majority vote, though only at enormous depth.",
        paper_figure="100 points, 50,000 layers",
        source="theorem on majority votes; the authors' runs",
        relation='relu_is_majority["limits"] == 1',
        direction='relu_is_majority["limits"] > 0.9',
        scales=("laptop", "paper"),
    ),
    Claim(
        id="without-a-linear-part-the-nearest-neighbour",
        statement="A network whose activation has neither mean nor linear part becomes the nearest neighbour.",
        paper_figure="an equality",
        source="theorem on nearest neighbours",
        relation='hermite_is_nearest["limits"] >= 0.995',
        scales=("laptop", "paper"),
        note="he_3 at depth 10",
    ),
)

_CURVES = "|".join(f"curve_{name}" for name in _ORDERS)

PAPER = Paper(
    slug="optimal-classifiers",
    title="Wide and Deep Neural Networks Achieve Optimality for Classification",
    arxiv="2204.14126",
    date="2022-04",
    venue="PNAS 2023",
    code="uhlerlab/inf_depth_ntks",
    summary=(
        "Fully connected networks that are infinitely wide and infinitely deep, trained to the end, are one of three "
        "classifiers, and the activation alone decides which: the nearest neighbour, the majority vote, or a vote with "
        "a kernel that is singular at distance 0. The order of the singularity follows from two Gaussian moments of "
        "the activation's slope. Where it equals the dimension of the data the classifier is consistent: the error "
        "tends to the smallest possible one. Neither ReLU nor the sigmoid does this; polynomials that do are given."
    ),
    claims=_CLAIMS,
    scales={
        "smoke": Scale(
            cells=(_ORDER_CELL, _deep(2, 1500, 1500), _deep(3, 1500, 1500)),
            minutes=0.7,
            note="1,500 of 10,000 points, two of four data sets, one seed",
        ),
        "laptop": Scale(
            cells=(
                _ORDER_CELL,
                *(_deep(dim, 1500, 1500, seeds=1) for dim in _DIMS),
                *(_limit(dim, rows, 1000) for dim in _DIMS for rows in (300, 1000, 3000, 10_000)),
                _limits_cell(50_000, 100, 50),
                _finite_cell(1000, 256, 6, 300),
            ),
            seeds=3,
            minutes=6.0,
            note="kernels are solved for 1,500 points, one seed; infinite depth needs no solving and has up to 10,000",
        ),
        "paper": Scale(
            cells=(
                _ORDER_CELL,
                *(_deep(dim, 10_000, 10_000) for dim in _DIMS),
                *(_limit(dim, rows, 10_000) for dim in _DIMS for rows in (300, 1000, 3000, 10_000, 30_000)),
                _limits_cell(50_000, 100, 10_000),
                _finite_cell(10_000, 4096, 16, 5000),
            ),
            seeds=5,
            minutes=600.0,
            hardware="a machine with many cores and 32 GB of memory per run; one GPU for the finite network",
            note="10,000 points for training and for testing, as in the paper; the time is an estimate",
        ),
    },
    measure=measure_accuracy,
    plots=(
        Plot(
            "orders",
            "lines",
            _CURVES,
            "Kernels of depth 200, divided by a^200",
            x="gap",
            xlabel="log10 of 1 - correlation",
            ylabel="log10 of the kernel",
            cells=("orders",),
        ),
        Plot("accuracy", "bars", "optimal", "The right activation", ylabel="test accuracy"),
        Plot("gap", "bars", "gap_optimal", "Gap of the right activation to the Bayes rule", ylabel="accuracy"),
        Plot("gap_nearest", "bars", "gap_nearest", "Gap of the nearest neighbour", ylabel="accuracy"),
        Plot("methods", "bars", "bayes|optimal|sine|erf|hilbert|nearest|majority", "Two coordinates",
             ylabel="test accuracy", cells=("2d",)),
        Plot("network", "lines", "curve_test", "A trained network of the same activation", x="step",
             xlabel="training step", ylabel="test accuracy", cells=("network",)),
    ),
    methods=(
        "activations.hermite_activation",
        "activations.sine_activation",
        "losses.nngp_kernel",
        "losses.ntk_kernel",
    ),
    notes=(
        "The paper shows curves on Dirichlet mixtures; thresholds and sizes are this project's. At these sizes "
        "accuracy does not separate neighbouring orders: in two coordinates erf, of order 0.89 instead of 1, does as "
        "well. Consistency is claimed by order and trend only.",
        "Depths are those of the authors' script, 100 for the designed activations. The authors' sine NTK is not "
        "compared: its derivative exists in their code for one frequency only.",
        "The finite network (Hermite activation, NTK parametrisation, AdamW) is reported beside its limit without a "
        "claim; at laptop scale it has 6 layers of width 256.",
        "The solve stops where the kernel matrix is singular in float64 (dense points and shallow kernels): it is then "
        "a least-squares solution, with a warning.",
    ),
)  # fmt: skip
