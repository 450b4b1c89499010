"""Lipschitz bounds by semidefinite programming for GroupSort, MaxMin and Householder networks."""

from __future__ import annotations

from typing import Any

from softgate.lab.lipschitz_study import measure_layer, measure_network, measure_residual, measure_trained
from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale

__all__ = ["PAPER"]

_LAYER = Cell("layer", {"width": 8}, measure_layer, seeds=1)
_LAPTOP_NETWORKS = ("2fc-16", "2fc-32", "2fc-64", "5fc-32", "5fc-64", "8fc-32", "8fc-64", "18fc-32")
_LARGE_NETWORKS = ("2fc-128", "8fc-128", "8fc-256", "18fc-64", "18fc-128")
_DIGITS = ("digits-2", "digits-5", "digits-8", "digits-groupsort4", "digits-householder")
_MNIST = ("mnist-maxmin-32", "mnist-maxmin-64", "mnist-groupsort4-32", "mnist-householder-32")


def _network(name: str, **options: Any) -> Cell:
    return Cell(name, {"network": name, **options}, measure_network, seeds=1)


def _residual(name: str) -> Cell:
    return Cell(name, {"network": name}, measure_residual, seeds=1)


def _digits() -> tuple[Cell, ...]:
    """Networks with as many linear layers as the authors', for images of 8×8 pixels."""
    common: dict[str, Any] = {"data": "digits", "steps": 400, "batch": 50, "lr": 3e-3}
    networks = {f"digits-{n}": ("maxmin", n - 1) for n in (2, 5, 8)}
    networks |= {f"digits-{name}": (name, 2) for name in ("groupsort4", "householder")}
    return tuple(
        Cell(name, {**common, "activation": activation, "hidden": [16] * layers}, measure_trained)
        for name, (activation, layers) in networks.items()
    )


def _mnist() -> tuple[Cell, ...]:
    common = {"data": "mnist", "steps": 3000, "batch": 100, "lr": 1e-3}
    cells = []
    for name in _MNIST:
        _, activation, width = name.split("-")
        config = {**common, "activation": activation, "hidden": [int(width)] * 2}
        cells.append(Cell(name, config, measure_trained))
    return tuple(cells)


def _all(relation: str, cells: tuple[str, ...]) -> str:
    """``relation`` with CELL replaced by each of ``cells``, joined."""
    return " and ".join(relation.replace("CELL", cell) for cell in cells)


_ORDERED = (
    'lower["CELL"] <= full["CELL"] and full["CELL"] <= 1.000001 * diagonal["CELL"] '
    'and diagonal["CELL"] <= product["CELL"]'
)

_CLAIMS = (
    Claim(
        id="maxmin-is-seen-as-it-is",
        statement="With the new constraints one MaxMin layer has the bound 1, which is right; rewritten as a network "
        "of ReLU it has √2.",
        paper_figure="rho = 1 and rho = 2 (the square of the bound)",
        source="comparison with the rewriting as residual ReLU networks (LipSDP-RR)",
        relation='abs(nsr["layer"] - 1) < 0.000001 and abs(rr["layer"] - 1.4142136) < 0.000001',
    ),
    Claim(
        id="below-the-product",
        statement="The bound is below the product of the layers' norms, above every Jacobian that sampling finds, and "
        "the full multipliers give no larger one than S = P = 0.",
        paper_figure="every cell of Table 1 is below its product bound",
        source="Table 1, l2",
        relation=_all(_ORDERED, _LAPTOP_NETWORKS),
        per_scale={
            "smoke": _all(_ORDERED, _DIGITS),
            "paper": _all(_ORDERED, (*_LAPTOP_NETWORKS, *_LARGE_NETWORKS)),
        },
        note="the authors' networks; smoke: networks trained here on digits of 8×8 pixels",
    ),
    Claim(
        id="deep-network-l2",
        statement="For the authors' network of 18 layers of width 32 the bound is a quarter of the product.",
        paper_figure="17,432 against 73,405; Jacobians up to about 267",
        source="Table 1, 18FC-32, l2 (quoted in the public reviews)",
        relation='abs(diagonal["18fc-32"] / 17432 - 1) < 0.005 and abs(product["18fc-32"] / 73405 - 1) < 0.005',
        scales=("laptop", "paper"),
        note="S = P = 0, as in the paper's experiments",
    ),
    Claim(
        id="deepest-and-widest",
        statement="So it is with width 128, in both norms.",
        paper_figure="l2 24,271 against 74,167; l-infinity 1.97e5 against 2.79e16",
        source="Table 1, 18FC-128 (quoted in the public reviews)",
        relation='abs(diagonal["18fc-128"] / 24271 - 1) < 0.005 and abs(product["18fc-128"] / 74167 - 1) < 0.005 and '
        'abs(linf_diagonal["18fc-128"] / 197000 - 1) < 0.01 and abs(linf_product["18fc-128"] / 2.79e16 - 1) < 0.01',
        scales=("paper",),
    ),
    Claim(
        id="gap-grows-with-depth",
        statement="In the maximum norm the product is hopeless for deep networks: it exceeds the bound more than twice "
        "with 2 layers and more than a thousand times with 8.",
        paper_figure="11 orders of magnitude with 18 layers",
        source="Table 1, l-infinity, output 9",
        relation='min(linf_ratio["2fc-16"], linf_ratio["2fc-32"], linf_ratio["2fc-64"]) > 2 and '
        'min(linf_ratio["8fc-32"], linf_ratio["8fc-64"]) > 1000',
        per_scale={
            "smoke": 'linf_ratio["digits-5"] > 2 * linf_ratio["digits-2"] and '
            'linf_ratio["digits-8"] > 2 * linf_ratio["digits-5"]'
        },
        note="smoke: the ratio at least doubles from 2 to 5 and from 5 to 8 layers",
    ),
    Claim(
        id="zero-multipliers-lose-nothing",
        statement="In feed-forward networks S = P = 0 gives the same bound as the full multipliers.",
        paper_figure="stated as a fact, the reason to leave S and P out",
        source="remark after the theorem for feed-forward networks",
        relation=_all('diagonal_over_full["CELL"] < 1.001', _LAPTOP_NETWORKS),
        scales=("laptop", "paper"),
        note="what the full multipliers gain is proven by certificates that need no solver to check",
    ),
    Claim(
        id="residual-networks",
        statement="In residual networks the full multipliers are better than S = P = 0, and both than the product.",
        paper_figure="S = 0 or P = 0 is better than both 0",
        source="residual networks (the authors' script)",
        relation='full["residual-5-32"] < 0.999 * diagonal["residual-5-32"] and '
        'diagonal["residual-5-32"] < product["residual-5-32"]',
        scales=("laptop", "paper"),
        note="with the norms of the first and last map outside, as the authors have it",
    ),
    Claim(
        id="larger-groups-and-reflections",
        statement="The same holds for GroupSort with groups of four and for learned Householder activations.",
        paper_figure="covered by Lemmas 1 and 2, not in the experiments",
        source="Lemmas 1 and 2",
        relation=_all(_ORDERED, _MNIST),
        per_scale={"smoke": _all(_ORDERED, ("digits-groupsort4", "digits-householder"))},
        scales=("smoke", "laptop"),
        note="networks trained here; laptop: on MNIST, three seeds",
    ),
    Claim(
        id="decisions-are-certain-for-longer",
        statement="The median decision survives a larger change of its image for certain than the product promises.",
        paper_figure="not in the paper",
        source="what the bound is for",
        relation=_all('radius_full["CELL"] > 1.05 * radius_product["CELL"]', _MNIST),
        direction=_all('radius_full["CELL"] > radius_product["CELL"]', _MNIST),
        scales=("laptop",),
    ),
)

PAPER = Paper(
    slug="lipsdp-quadratic-constraints",
    title="Novel Quadratic Constraints for Extending LipSDP beyond Slope-Restricted Activations",
    arxiv="2401.14033",
    date="2024-01",
    venue="ICLR 2024",
    code="ppauli/QCs_MaxMin",
    summary=(
        "LipSDP bounds how much a network can lengthen a change of its input by a semidefinite program, but only for "
        "activations with bounded slopes. GroupSort, MaxMin and Householder activations have none. The paper gives "
        "quadratic constraints for them: no group is lengthened, and each keeps its sum, or what is orthogonal to its "
        "vector. The bounds are far below the product of the layers' norms, above all for deep networks and in the "
        "maximum norm."
    ),
    methods=("activations.group_sort", "activations.householder"),
    measure=measure_network,
    claims=_CLAIMS,
    plots=(
        Plot("l2", "bars", "product|diagonal|full|lower", "Bounds in the Euclidean norm, and the largest Jacobian seen",
             ylabel="Lipschitz constant", log="y", cells=(*_LAPTOP_NETWORKS, *_DIGITS[:3])),
        Plot("linf", "bars", "linf_product|linf_diagonal|linf_lower", "Bounds in the maximum norm, one output",
             ylabel="Lipschitz constant", log="y", cells=(*_LAPTOP_NETWORKS, *_DIGITS[:3])),
        Plot("gain", "bars", "diagonal_over_full", "What S and P gain", ylabel="bound with S = P = 0 / full bound",
             reference={"nothing": 1.0}),
        Plot("radius", "bars", "radius_product|radius_full", "Certain radius of the median decision",
             ylabel="Euclidean norm of the change", cells=(*_MNIST, *_DIGITS)),
    ),
    scales={
        "smoke": Scale(
            cells=(_LAYER, *_digits()),
            minutes=0.5,
            note="small networks trained on digits of 8×8 pixels; the authors' are not shipped",
        ),
        "laptop": Scale(
            cells=(_LAYER, *map(_network, _LAPTOP_NETWORKS), _residual("residual-5-32"), *_mnist()),
            seeds=3,
            minutes=8.0,
            note="the authors' published networks up to 8 layers of width 64 and 18 of width 32",
        ),
        "paper": Scale(
            cells=(
                _LAYER,
                *(_network(name) for name in (*_LAPTOP_NETWORKS, *_LARGE_NETWORKS)),
                *(_residual(name) for name in ("residual-5-32", "residual-8-32")),
                Cell("18fc-32-rows", {"network": "18fc-32", "every_row": True}, measure_network, seeds=1),
            ),
            minutes=90.0,
            hardware="a CPU for an hour or two",
            note="all networks of Table 1, and every output of one in the maximum norm; the time is an estimate",
        ),
    },
    notes=(
        "The text of the paper was not available: figures are those that its public reviews quote, and the lemmas were "
        "derived again and tried on random numbers.",
        "Weights come from the authors' repository (--download), MNIST from its usual place.",
        "The full multipliers are solved after eliminating what passes straight through, by a primal-dual "
        "interior-point method; S = P = 0 by the same or by descent on scaled norms. No semidefinite solver is needed, "
        "and every bound is checked from its multipliers alone.",
        "In the maximum norm the figures are those for S = P = 0, as in the paper; softgate also solves the full ones.",
    ),
)  # fmt: skip
