"""Adaptive estimators of mutual information: which networks compress, and what the bins had to do with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale

if TYPE_CHECKING:
    from softgate.lab.cell import CellRun
    from softgate.lab.paper import Figures

_ALL = ("tanh", "relu", "elu", "swish", "prelu", "abs", "softplus", "centred_softplus")
_LAYERS = range(1, 7)


def measure(run: CellRun) -> Figures:
    """The information plane of an ensemble; :func:`softgate.lab.information_training.measure_plane`."""
    from softgate.lab import information_training  # needs the rooms, which listing the papers must not

    return information_training.measure_plane(run)


def _cell(activation: str, l2: float = 0.0, **changes: Any) -> Cell:
    config = {
        "data": "icosahedron", "split": "random", "sizes": [12, 10, 7, 5, 4, 3, 2], "activation": activation,
        "nets": 10, "epochs": 2000, "batch": 256, "lr": 4e-4, "l2": l2, "points": 40, "estimator": "ebab",
        "followed": 5,
    }  # fmt: skip
    return Cell(f"{activation}-l2" if l2 else activation, {**config, **changes})


def _mnist(activation: str) -> Cell:
    config = {"data": "mnist", "sizes": [784, 256, 64, 32, 16, 10], "nets": 5, "epochs": 200, "points": 60,
              "estimator": "akde", "followed": 4}  # fmt: skip
    return Cell(f"mnist-{activation}", {**_cell(activation).config, **config})


_CLAIMS = (
    Claim(
        id="what-an-estimate-can-be",
        statement="No estimate exceeds the logarithm of the number of inputs, 12 bits; the first layer stays close to "
        "it, and the deeper a layer the less it carries on average.",
        paper_figure="curves of the information plane",
        source="data processing; figures of the information plane",
        relation=" and ".join(
            f'largest["{name}"] <= 12 and lowest_1["{name}"] > 11.9 and '
            + " and ".join(f'mean_{i}["{name}"] > mean_{i + 1}["{name}"]' for i in range(1, 5))
            for name in ("tanh", "relu")
        ),
    ),
    Claim(
        id="fixed-bins-hide-early-layers",
        statement="With bins between zero and the largest activity of the whole network, layer 3 of ReLU networks "
        "looks as if it carried at least a bit less than adaptive bins find, at every epoch.",
        paper_figure="shown for ReLU; figures not seen as numbers",
        source="motivation of the adaptive estimators",
        relation='gap_3["relu"] > 1',
    ),
    Claim(
        id="compression-by-activation",
        statement="The last hidden layer forgets most with tanh, then ELU, and least with ReLU, which still forgets "
        "some; Swish forgets more than ReLU.",
        paper_figure="tanh strongest; ELU, Swish and centred softplus compress",
        source="information planes by activation",
        relation='drop_5["tanh"] > drop_5["elu"] > drop_5["relu"] > 0.3 and drop_5["swish"] > drop_5["relu"]',
        direction='drop_5["tanh"] > drop_5["relu"] > 0',
        scales=("laptop", "paper"),
        note="drop: largest I(T; X) over the epochs less the last one, mean over networks; the paper's own score was "
        "not available",
    ),
    Claim(
        id="no-saturation-needed",
        statement="Activations that do not saturate on both sides forget too.",
        paper_figure="compression with ReLU, ELU and Swish",
        source="information planes by activation",
        relation='min(drop_5["relu"], drop_5["elu"], drop_5["swish"]) > 0.3',
        direction='min(drop_5["relu"], drop_5["elu"], drop_5["swish"]) > 0',
        scales=("laptop", "paper"),
    ),
    Claim(
        id="depends-on-the-start",
        statement="How much a ReLU or ELU network forgets depends very much on its initial weights.",
        paper_figure="shown over 50 initialisations",
        source="information planes of single initialisations",
        relation='spread_5["relu"] > 0.5 and spread_5["elu"] > 0.5',
        direction='max(spread_5["relu"], spread_5["elu"]) > 0.5',
        scales=("laptop", "paper"),
        note="standard deviation over networks of the drop in layer 5, bits",
    ),
    Claim(
        id="weight-decay-compresses",
        statement="An L2 penalty makes ReLU networks forget far more, brings the layers together, and does not cost "
        "test accuracy.",
        paper_figure="greatly increased compression, clustered layers, less overfitting",
        source="section on regularisation",
        relation='drop_3["relu-l2"] > drop_3["relu"] + 2 and drop_4["relu-l2"] > drop_4["relu"] + 2 and '
        'max(final_3["relu-l2"], final_4["relu-l2"], final_5["relu-l2"], final_6["relu-l2"]) - '
        'min(final_3["relu-l2"], final_4["relu-l2"], final_5["relu-l2"], final_6["relu-l2"]) < 1.5 and '
        'accuracy["relu-l2"] >= accuracy["relu"]',
        direction='drop_3["relu-l2"] > drop_3["relu"] and drop_4["relu-l2"] > drop_4["relu"]',
        scales=("laptop", "paper"),
        note="penalty 0.015 on all weights but those of the output",
    ),
    Claim(
        id="a-second-estimator",
        statement="Noise in proportion to the layer's largest activity sees compression of the last hidden layer too.",
        paper_figure="both estimators agree",
        source="adaptive KDE",
        relation='akde_drop["tanh"] > 0.3 and akde_drop["relu-l2"] > 0.3',
        direction='akde_drop["tanh"] > 0 and akde_drop["relu-l2"] > 0',
        scales=("laptop", "paper"),
        note="upper bound, variance 0.001 of the largest activity, every fourth recorded epoch",
    ),
    Claim(
        id="last-layer-and-generalisation",
        statement="Compression of the last layer goes along with test accuracy, that of hidden layers does not.",
        paper_figure="a correlation for the last layer only",
        source="section on generalisation",
        relation='spearman_6["tanh"] > 0.3 and max(abs(spearman_3["tanh"]), abs(spearman_4["tanh"])) < 0.3',
        direction='spearman_6["tanh"] > max(spearman_3["tanh"], spearman_4["tanh"])',
        scales=("paper",),
        note="rank correlation over 50 initialisations",
    ),
)

_PLOTS = (
    *(
        Plot(f"plane-{name}", "lines", "|".join(f"curve_{i}" for i in _LAYERS), f"I(T; X) by layer, {name}", x="epoch",
             xlabel="epoch", ylabel="I(T; X) by adaptive bins, bits", cells=(name,), log="x")
        for name in ("tanh", "relu", "relu-l2")
    ),
    Plot("drops", "bars", "drop_3|drop_4|drop_5|drop_6", "What layers forget",
         ylabel="largest less last I(T; X), bits"),
    Plot("spread", "bars", "spread_5", "Spread of the drop in layer 5 over initial weights", ylabel="bits"),
    Plot("fixed", "bars", "final_3|fixed_final_3|final_5|fixed_final_5", "Adaptive and fixed bins at the end",
         ylabel="I(T; X), bits"),
    Plot("labels", "bars", "ity_1|ity_3|ity_5|ity_6", "What is known of the label at the end", ylabel="I(T; Y), bits",
         reference={"entropy of the label": 0.999157}),
    Plot("density", "lines", "akde", "Layer 5 by adaptive noise", x="akde_epoch", xlabel="epoch",
         ylabel="upper bound of I(T; X), bits", log="x"),
)  # fmt: skip

PAPER = Paper(
    slug="adaptive-information-estimators",
    title="Adaptive Estimators Show Information Compression in Deep Neural Networks",
    arxiv="1902.09037",
    date="2019-02",
    venue="ICLR 2019",
    summary=(
        "Studies of the information plane disagree because one set of bins, or one variance of noise, does not fit "
        "layers whose activity has other sizes. Bins with equally many distinct values of a layer, or noise in "
        "proportion to its largest activity, follow every layer and epoch. With them compression needs no saturation; "
        "how much there is depends on activation and initial weights, and an L2 penalty raises it."
    ),
    claims=_CLAIMS,
    scales={
        "smoke": Scale(
            cells=tuple(_cell(name, nets=4, epochs=300, points=14) for name in ("tanh", "relu")),
            minutes=0.6,
            note="4 networks of each of two activations, 300 epochs",
        ),
        "laptop": Scale(
            cells=(*(_cell(name) for name in _ALL[:4]), _cell("relu", 0.015)),
            minutes=8.0,
            note="10 networks of each of four activations, 2000 of 8000 epochs, about 40 of 400 recorded epochs",
        ),
        "paper": Scale(
            cells=(
                *(_cell(name, split="file", nets=50, epochs=8000, points=400) for name in _ALL),
                _cell("relu", 0.015, split="file", nets=50, epochs=8000, points=400),
                *(_mnist(name) for name in ("tanh", "relu")),
            ),
            minutes=1500.0,
            hardware="one GPU",
            note="50 networks of each of eight activations; MNIST by adaptive noise on the 10,000 test images",
        ),
    },
    measure=measure,
    plots=_PLOTS,
    methods=("diagnostics.kde_entropy", "diagnostics.mutual_information", "diagnostics.InformationPlane"),
    code="ivansche/adaptive_estimators",
    notes=(
        "For a deterministic network the true I(T; X) says only how many inputs differ: every number here is made by "
        "the bins or by the noise.",
        "The authors' code trains on the first 80 % of the patterns in their order, which the paper scale does. Smoke "
        "and laptop split at random and take a new order of batches every epoch.",
        "The constant of the adaptive noise and the score of compression were not available: variance 0.001 times the "
        "largest activity, and largest less last I(T; X), are this project's. So is the set-up on MNIST.",
        "The authors' bins have no rule for activations below their lowest edge, such as Swish; here the lowest edge "
        "then moves below all values.",
        "Averaged over many initialisations, ReLU shows no phase of fitting followed by one of compression in the "
        "paper either; its example of ReLU is one initialisation.",
    ),
)
