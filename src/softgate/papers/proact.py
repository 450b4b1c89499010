"""ProAct: bounds on activations that stop flipped bits, one per neuron in the last layer, learned layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale

if TYPE_CHECKING:
    from softgate.lab.cell import CellRun
    from softgate.lab.paper import Figures

_ALL = ("layer", "saturate", "neuron", "hybrid", "fitact", "proact_layer", "proact_neuron", "proact")
_RATES = {"1e6": 1e-6, "1e5": 1e-5, "3e5": 3e-5, "1e4": 1e-4, "3e4": 3e-4}


def measure_faults(run: CellRun) -> Figures:
    """Faults in a small network; :func:`softgate.lab.fault_training.measure_faults`."""
    from softgate.lab import fault_training  # needs the rooms, which listing the papers must not

    return fault_training.measure_faults(run)


def _cell(name: str, methods: tuple[str, ...], rates: dict[str, float], **options: Any) -> Cell:
    config = {
        "rows": 12_000, "epochs": 5, "tested": 2000, "methods": list(methods), "fmt": "q15.16", "rates": rates,
        "trials": 50, "learn_epochs": 3, "decays": 4, **options,
    }  # fmt: skip
    return Cell(name, config)


_CLAIMS = (
    Claim(
        id="faults-destroy",
        statement="Flipped bits in fixed-point weights destroy a network with plain ReLU.",
        paper_figure="curves over the bit error rate, not numbers",
        source="motivation",
        relation='plain_1e5["fixed"] < 0.35 and plain_1e4["fixed"] < 0.2',
    ),
    Claim(
        id="clipping-saves",
        statement="Any bound on the activations keeps most of the accuracy at a rate at which plain ReLU has lost it.",
        paper_figure="up to 6.4 times the accuracy",
        source="abstract, at high bit error rates",
        relation='min(layer_1e5["fixed"], neuron_1e5["fixed"], hybrid_1e5["fixed"]) > 0.85',
    ),
    Claim(
        id="hybrid-above-layer",
        statement="One bound per neuron in the last layer, and one per layer elsewhere, is better than one per layer "
        "everywhere.",
        paper_figure="curves, not numbers",
        source="hybrid activation",
        relation='hybrid_1e4["fixed"] > layer_1e4["fixed"]',
    ),
    Claim(
        id="the-whole-order",
        statement="ProAct's hybrid is at least as good as the same bounds before learning, these as good as bounds per "
        "neuron everywhere, these better than bounds per layer, and these than plain ReLU.",
        paper_figure="6.4 times the accuracy at high bit error rates",
        source="abstract; comparison of methods",
        relation='proact_1e4["fixed"] >= hybrid_1e4["fixed"] >= neuron_1e4["fixed"] > layer_1e4["fixed"] > '
        'plain_1e4["fixed"]',
        direction='proact_1e4["fixed"] > layer_1e4["fixed"] > plain_1e4["fixed"]',
        scales=("laptop", "paper"),
    ),
    Claim(
        id="better-than-fitact",
        statement="It is better than bounds per neuron that are learned all at once.",
        paper_figure="curves, not numbers",
        source="comparison with FitAct",
        relation='proact_1e4["fixed"] > fitact_1e4["fixed"]',
        scales=("laptop", "paper"),
    ),
    Claim(
        id="nothing-lost-without-faults",
        statement="Without faults hardly anything is lost.",
        paper_figure="an accuracy drop of at most 0.2 points is allowed for",
        source="progressive training",
        relation='clean_proact["fixed"] > clean_plain["fixed"] - 0.005',
        scales=("laptop", "paper"),
    ),
    Claim(
        id="little-memory",
        statement="Its bounds take a small part of the memory of bounds per neuron.",
        paper_figure="10.5 to 134 times less",
        source="abstract",
        relation='bounds_hybrid["fixed"] < bounds_neuron["fixed"] / 10',
        direction='bounds_hybrid["fixed"] < bounds_neuron["fixed"] / 3',
    ),
    Claim(
        id="floats-too",
        statement="Floats are saved as well.",
        paper_figure="not claimed",
        source="the authors' toolbox injects faults into floats",
        relation='proact_1e5["float"] > plain_1e5["float"] and proact_1e4["float"] > 0.8',
        scales=("laptop",),
    ),
)

PAPER = Paper(
    slug="proact",
    title="ProAct: Progressive Training for Hybrid Clipped Activation Function to Enhance Resilience of DNNs",
    arxiv="2406.06313",
    date="2024-06",
    code="hamidmousavi0/reliable-relu-toolbox",
    summary=(
        "A flipped bit in a stored weight blows an activation up, and the next layers pass it on. A ReLU that gives 0 "
        "above a bound stops it. Bounds per neuron stop more than bounds per layer, but take memory in which bits flip "
        "as well; they are needed in the last layer only. ProAct learns the bounds one layer after the other, from the "
        "last to the first, with the unprotected network as the teacher."
    ),
    claims=_CLAIMS,
    scales={
        "smoke": Scale(
            cells=(
                _cell("fixed", ("layer", "neuron", "hybrid"), {"1e5": 1e-5, "1e4": 1e-4}, epochs=3, trials=15),
            ),
            minutes=0.6,
            note="a network of 207,000 parameters on MNIST, 3 epochs on 12,000 images; bounds as measured, not learned",
        ),
        "laptop": Scale(
            cells=(
                _cell("fixed", _ALL, _RATES),
                _cell("float", ("layer", "proact"), {"1e5": 1e-5, "1e4": 1e-4}, fmt="float32", trials=25),
            ),
            minutes=6.0,
            note="a network of 207,000 parameters on MNIST; 3 of 105 epochs for each of 4 of 11 weight decays",
        ),
        "paper": Scale(
            cells=(
                _cell("fixed", _ALL, _RATES, rows=58_000, epochs=20, tested=10_000, trials=500, learn_epochs=105,
                      decays=11),
            ),
            seeds=3,
            minutes=3000.0,
            hardware="a machine with many cores for about two days",
            note="MNIST in full with the authors' numbers of epochs, decays and injections; the paper has AlexNet, "
            "VGG-16 and ResNet-50 on CIFAR-10 and CIFAR-100; the time is an estimate",
        ),
    },
    measure=measure_faults,
    plots=(
        Plot("faults", "lines", "curve_plain|curve_layer|curve_neuron|curve_hybrid|curve_proact",
             "Accuracy with flipped bits, fixed point", x="ber", xlabel="bit error rate", ylabel="mean accuracy",
             cells=("fixed",), log="x"),
        Plot("learned", "lines", "curve_hybrid|curve_fitact|curve_proact_layer|curve_proact_neuron|curve_proact",
             "Learned bounds", x="ber", xlabel="bit error rate", ylabel="mean accuracy", cells=("fixed",), log="x"),
        Plot("memory", "bars", "bounds_layer|bounds_hybrid|bounds_neuron", "Numbers that the bounds take",
             ylabel="bounds", cells=("fixed",), log="y"),
    ),
    methods=("activations.hyrelu",),
    notes=(
        "Claims are those of the abstract; the paper's tables were not seen.",
        "Faults: every bit of the weights and biases of linear layers and convolutions, and of bounds that are one per "
        "neuron, flips with the given probability; single bounds are taken as free of faults, as in the authors' code. "
        "Fixed point has 32 bits, 16 of them after the point.",
        "Followed is the algorithm, not what differs in the authors' code: held-out images decide about bounds, not "
        "the test images; every layer has a fresh optimizer with a constant learning rate; no update makes a bound "
        "negative.",
        "All methods meet the same faults in the weights.",
    ),
)  # fmt: skip
