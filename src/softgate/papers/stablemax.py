"""Grokking at the Edge of Numerical Stability: StableMax and perpGrad."""

from __future__ import annotations

from typing import Any

from softgate.lab.grokking import measure_grokking
from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale

#: Defaults of the authors' code: modulus 113, addition, 40 % of the pairs, full batch, MLP 226-200-200-113.
_ADD = {"kind": "modular", "modulus": 113, "operation": "add", "fraction": 0.4}
#: A parity task a tenth of the paper's size: 600 rows, 20 noise bits, MLP 23-64-64-2.
_PARITY = {"kind": "parity", "rows": 600, "noise": 20, "parity": 3, "fraction": 0.5}
_PAPER_PARITY = {"kind": "parity", "rows": 2000, "noise": 40, "parity": 3, "fraction": 0.5}


def _add(epochs: int, **settings: Any) -> dict[str, Any]:
    return {"task": _ADD, "lr": 0.01, "epochs": epochs, "evaluations": 30, **settings}


def _parity(epochs: int, **settings: Any) -> dict[str, Any]:
    return {"task": _PARITY, "hidden": [64, 64], "lr": 0.01, "eps": 1e-18, "epochs": epochs, **settings}


def _precision(bits: int) -> dict[str, Any]:
    task = {**_ADD, "modulus": 47, "fraction": 0.7}
    return {"task": task, "lr": 0.01, "eps": 1e-25, "epochs": 4000, "evaluations": 100, "precision": f"float{bits}"}


def _long(operation: str, loss: str, epochs: int, **settings: Any) -> dict[str, Any]:
    task = {**_ADD, "operation": operation}
    return {"task": task, "lr": 0.01, "eps": 1e-25, "epochs": epochs, "loss": loss, "evaluations": 200, **settings}


def _paper_cells() -> tuple[Cell, ...]:
    cells = [Cell(f"stablemax-{op}", _long(op, "stablemax", 80_000)) for op in ("add", "product")]
    parity = {"task": _PAPER_PARITY, "lr": 0.01, "eps": 1e-18, "evaluations": 200}
    cells += [
        Cell("parity-stablemax", {**parity, "epochs": 100_000, "loss": "stablemax"}),
        Cell("parity-softmax", {**parity, "epochs": 100_000}),
        Cell("softmax-add", _long("add", "softmax", 80_000)),
        Cell("softmax64-add", _long("add", "softmax", 80_000, precision="float64")),
        Cell("collapse-free-add", _long("add", "collapse-free", 80_000)),
        Cell("perpgrad", _add(300, orthogonal=True)),
        Cell("plain", _add(300)),
        Cell("sgd-perpgrad", _add(500, orthogonal=True, lr=10.0, momentum=0.8, loss="stablemax", precision="float64")),
    ]
    for bits, fraction in ((b, f) for b in (16, 32, 64) for f in (0.4, 0.6, 0.7)):
        settings = {"task": {**_ADD, "fraction": fraction}, "lr": 5e-4, "epochs": 20_000, "precision": f"float{bits}"}
        cells.append(Cell(f"fp{bits}-{fraction}", {**settings, "eps": 1e-30 if fraction == 0.4 else 1e-25}))
    for name, extra in (("perpgrad", {"orthogonal": True}), ("decay", {"weight_decay": 1.5}), ("plain", {})):
        settings = {"transformer": True, "lr": 1e-3, "evaluations": 100}
        cells.append(Cell(f"transformer-{name}", _add(5000, **settings, **extra)))
    return tuple(cells)


PAPER = Paper(
    slug="stablemax",
    title="Grokking at the Edge of Numerical Stability",
    arxiv="2501.04697",
    date="2025-01",
    venue="ICLR 2025",
    code="LucasPrietoAl/grokking-at-the-edge-of-numerical-stability",
    summary=(
        "Without regularisation a network that fits its training set keeps scaling its logits up, until the sum of "
        "exponentials in softmax rounds to the largest one: the loss and its gradient become exactly 0 and learning "
        "stops, which is why grokking seems to need weight decay. StableMax replaces the exponential by a function "
        "that grows linearly, so the loss never dies. perpGrad removes from every gradient the part along the "
        "weights, which only scales the logits, and lets the network generalise almost without delay."
    ),
    methods=(
        "normalizers.stablemax",
        "normalizers.log_stablemax",
        "losses.stablemax_cross_entropy",
        "losses.collapse_free_cross_entropy",
        "optim.project_orthogonal_",
        "diagnostics.softmax_collapse",
        "diagnostics.nlm_alignment",
    ),
    measure=measure_grokking,
    claims=(
        Claim(
            id="perpgrad-generalises",
            statement="perpGrad generalises on modular addition within a few hundred epochs, without weight decay, "
            "where the same optimizer without it only memorises.",
            paper_figure="test accuracy near 1 within 300 epochs (curve)",
            source="Fig. 6, sec. 5",
            relation='test_acc["perpgrad"] > 0.95 and train_acc["plain"] > 0.99 and test_acc["plain"] < 0.1',
            direction='test_acc["perpgrad"] > test_acc["plain"] + 0.5',
        ),
        Claim(
            id="softmax-collapses",
            statement="Softmax cross-entropy in float32 ends in Softmax Collapse: every training row has a loss of "
            "exactly 0, and the test accuracy stays near chance.",
            paper_figure="SC in all rows, training stops before grokking (curve)",
            source="Fig. 2, sec. 3",
            relation='collapse["parity-softmax"] > 0.99 and zero_loss["parity-softmax"] > 0.99 and '
            'best_test_acc["parity-softmax"] < 0.65',
            direction='collapse["parity-softmax"] > 0.5 and best_test_acc["parity-softmax"] < 0.65',
            per_scale={"paper": 'collapse["softmax-add"] > 0.99 and best_test_acc["softmax-add"] < 0.5'},
            note="smoke and laptop: sparse parity with 600 rows and 23 bits",
        ),
        Claim(
            id="stablemax-keeps-learning",
            statement="StableMax cross-entropy never loses the gradient of a row, and the test accuracy goes on rising "
            "without weight decay until the network groks.",
            paper_figure="groks addition, product and parity within 80k to 100k epochs (curves)",
            source="Fig. 4, sec. 4",
            relation='zero_gradient["parity-stablemax"] == 0 and test_acc["parity-stablemax"] > 0.8',
            direction='zero_gradient["parity-stablemax"] == 0 and '
            'test_acc["parity-stablemax"] > best_test_acc["parity-softmax"] + 0.05',
            per_scale={
                "smoke": 'zero_gradient["parity-stablemax"] == 0 and test_acc["parity-stablemax"] > 0.7',
                "paper": 'test_acc["stablemax-add"] > 0.95 and test_acc["stablemax-product"] > 0.95 and '
                'test_acc["parity-stablemax"] > 0.95',
            },
            note="smoke stops after 12,000 epochs, while the curve still rises; laptop after 25,000",
        ),
        Claim(
            id="perpgrad-parity",
            statement="On the same parity task perpGrad generalises in a few hundred epochs.",
            paper_figure="no delay between training and test accuracy (curve)",
            source="Fig. 6, sec. 5",
            relation='test_acc["parity-perpgrad"] > 0.95',
            direction='test_acc["parity-perpgrad"] > test_acc["parity-softmax"] + 0.2',
            scales=("smoke", "laptop"),
            note="the paper shows modular addition; parity is this project's addition",
        ),
        Claim(
            id="precision-delays-collapse",
            statement="The lower the precision of softmax, the sooner it collapses, and the lower the test accuracy.",
            paper_figure="16 bits stop first, 64 bits last (curves)",
            source="Fig. 2, sec. 3",
            relation='mean_collapse["parity-softmax16"] > mean_collapse["parity-softmax"] > '
            'mean_collapse["parity-softmax64"] and '
            'test_acc["parity-softmax16"] <= test_acc["parity-softmax"] <= test_acc["parity-softmax64"]',
            direction='mean_collapse["parity-softmax16"] > mean_collapse["parity-softmax"] > '
            'mean_collapse["parity-softmax64"]',
            scales=("laptop",),
            note="sparse parity, where float32 collapses within minutes; 16 bits round after every operation",
        ),
        Claim(
            id="precision-on-addition",
            statement="The same on modular addition, with the larger training set of the paper's precision study.",
            paper_figure="16 bits stop first, 64 bits last (curves)",
            source="Fig. 2, sec. 3",
            relation='mean_collapse["add47-fp16"] > mean_collapse["add47-fp32"] > mean_collapse["add47-fp64"] and '
            'test_acc["add47-fp16"] <= test_acc["add47-fp32"] <= test_acc["add47-fp64"]',
            direction='mean_collapse["add47-fp16"] > mean_collapse["add47-fp64"]',
            scales=("laptop",),
            note="modulus 47, 70 % of the pairs, 4,000 epochs at learning rate 0.01, one seed; float32 collapses late "
            "on addition, most of it after that",
        ),
        Claim(
            id="precision-and-data",
            statement="With a small training set softmax collapses in 16 and 32 bits but not in 64, and with a large "
            "one the test accuracy grows with the precision.",
            paper_figure="16 bits stop first, 64 bits last; more data helps (curves)",
            source="Fig. 2, sec. 3",
            relation='collapse["fp16-0.4"] >= collapse["fp32-0.4"] > collapse["fp64-0.4"] and '
            'test_acc["fp16-0.7"] <= test_acc["fp32-0.7"] <= test_acc["fp64-0.7"]',
            scales=("paper",),
        ),
        Claim(
            id="perpgrad-beats-decay",
            statement="On a one-layer transformer perpGrad reaches a higher test accuracy than weight decay, and than "
            "no regularisation.",
            paper_figure="fastest of the three (curve)",
            source="Fig. 6, sec. 5",
            relation='test_acc["transformer-perpgrad"] > 0.95 and '
            'test_acc["transformer-perpgrad"] >= test_acc["transformer-decay"] and '
            'test_acc["transformer-perpgrad"] > test_acc["transformer-plain"]',
            scales=("paper",),
        ),
    ),
    plots=(
        Plot("test_accuracy", "lines", "test_acc_curve", "Test accuracy while training", "epoch", "epoch", "accuracy"),
        Plot("collapse", "lines", "collapse_curve", "Rows in Softmax Collapse", "epoch", "epoch", "share of rows"),
        Plot(
            "alignment",
            "lines",
            "alignment_curve",
            "Alignment of the applied gradient with naive loss minimisation",
            "epoch",
            "epoch",
            "cosine",
        ),
    ),
    scales={
        "smoke": Scale(
            cells=(
                Cell("perpgrad", _add(200, orthogonal=True)),
                Cell("plain", _add(300)),
                Cell("parity-stablemax", _parity(12_000, loss="stablemax")),
                Cell("parity-softmax", _parity(12_000)),
                Cell("parity-perpgrad", _parity(500, orthogonal=True)),
            ),
            minutes=1.0,
            note="the paper's addition task in full; parity a tenth of the paper's size and length; one seed",
        ),
        "laptop": Scale(
            cells=(
                Cell("perpgrad", _add(300, orthogonal=True)),
                Cell("plain", _add(300)),
                Cell("parity-stablemax", _parity(25_000, loss="stablemax")),
                Cell("parity-softmax", _parity(25_000)),
                Cell("parity-collapse-free", _parity(25_000, loss="collapse-free")),
                Cell("parity-perpgrad", _parity(500, orthogonal=True)),
                Cell("parity-softmax16", _parity(25_000, precision="float16")),
                Cell("parity-softmax64", _parity(25_000, precision="float64")),
                *(Cell(f"add47-fp{bits}", _precision(bits), seeds=1) for bits in (16, 32, 64)),
            ),
            seeds=3,
            minutes=12.0,
            note="the paper's addition task in full; parity a tenth of the paper's size, a quarter of its length",
        ),
        "paper": Scale(
            cells=_paper_cells(),
            seeds=1,
            minutes=600.0,
            hardware="1 GPU",
            note="all runs of run_main_experiments.sh; the time is an estimate, nobody has measured it",
        ),
    },
    notes=(
        "The paper reports curves, not numbers; the thresholds here are those of this project's pilot runs.",
        "Figures are measured without dropout; rows are not reshuffled between epochs, which only changes rounding.",
        "collapse-free cross-entropy is not in the paper: it separates the loss of the gradient from the growth of the "
        "logits, and shows that removing the collapse alone does not make the network generalise.",
        "In the long StableMax runs the float32 sum of s rounds to its largest term as well (the collapse curve): the "
        "formula as published would lose the gradient of the target there; the loss here leaves the target out of the "
        "sum and keeps it.",
        "perpGrad projects before AdamW's preconditioner, so the step itself is not exactly orthogonal to the weights.",
    ),
)
