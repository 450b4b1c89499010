"""CRReLU: ReLU with a learned correction, from a search for activations that lower the entropy of their output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale

if TYPE_CHECKING:
    from softgate.lab.cell import CellRun
    from softgate.lab.paper import Figures

_OTHERS = ("relu", "gelu", "elu", "prelu", "silu", "mish")
_BETAS = (0.1, 0.3, 0.5)


def measure_digits(run: CellRun) -> Figures:
    """Vision transformers on digits; :func:`softgate.lab.activation_training.measure_digits`."""
    from softgate.lab import activation_training  # needs the rooms, which listing the papers must not

    return activation_training.measure_digits(run)


def measure_entropy(run: CellRun) -> Figures:
    """The paper's argument in numbers; :func:`softgate.lab.activation_training.measure_entropy`."""
    from softgate.lab import activation_training

    return activation_training.measure_entropy(run)


def measure_images(run: CellRun) -> Figures:
    """Vision transformers on larger images; :func:`softgate.lab.activation_training.measure_images`."""
    from softgate.lab import activation_training

    return activation_training.measure_images(run)


def measure_preference(run: CellRun) -> Figures:
    """GPT-2 and preferences; :func:`softgate.lab.activation_training.measure_preference`."""
    from softgate.lab import activation_training

    return activation_training.measure_preference(run)


def _digits(activation: str, epochs: int) -> Cell:
    config = {"activation": activation, "epochs": epochs, "batch": 50, "lr": 2e-3, "weight_decay": 0.05}
    return Cell(activation, config)


def _images(activation: str) -> Cell:
    config = {
        "dataset": "cifar10", "activation": activation, "patch_size": 4, "embed_dim": 192, "depth": 12, "num_heads": 3,
        "steps": 39_000, "batch": 128, "lr": 5e-4, "warmup": 2000, "weight_decay": 0.05, "tested": None,
        "precision": "bf16",
    }  # fmt: skip
    return Cell(f"cifar10-{activation}", config, measure=measure_images)


def _preference(activation: str, beta: float) -> Cell:
    config = {
        "model": "openai-community/gpt2", "data": "Anthropic/hh-rlhf", "activation": activation, "beta": beta,
        "lr": 1e-5, "batch": 16, "steps": 5000, "tested": 2000, "tokens": 512,
    }  # fmt: skip
    return Cell(f"gpt2-{activation}-{beta:g}", config, measure=measure_preference, seeds=1)


_ENTROPY = Cell("entropy", {"eps": 0.01, "step": 1e-3}, measure=measure_entropy, seeds=1)
_BEST_OF_OTHERS = "max(" + ", ".join(f'accuracy["{name}"]' for name in _OTHERS) + ")"

_CLAIMS = (
    Claim(
        id="worst-has-the-largest-entropy",
        statement="Among activations with fixed bounds the distribution function of the input gives its output the "
        "largest entropy; sigmoid, tanh and hardtanh stretched to the same bounds come close but stay below.",
        paper_figure="a theorem",
        source="worst activation function with boundary conditions",
        relation='worst["entropy"] > max(tanh["entropy"], sigmoid["entropy"], hardtanh["entropy"])',
        note="hardtanh is judged by inputs within its bounds: the others all go to two points",
    ),
    Claim(
        id="the-correction-lowers-entropy",
        statement="One step against the first variation of the entropy turns the identity under a normal input into "
        "x - C x exp(-x²/2) to first order, and the entropy of its output falls.",
        paper_figure="the derivation of CRReLU",
        source="entropy-based activation function optimization; CRReLU",
        relation='change["entropy"] < 0 and misfit["entropy"] < 0.001',
    ),
    Claim(
        id="size-and-sign-of-the-effect",
        statement="On ReLU's positive half the correction changes the entropy by eps √2 / 4 nats to first order, so "
        "that a negative eps lowers it.",
        paper_figure="not in the paper, which starts eps at +0.01",
        source="first variation at eps = 0, by quadrature",
        relation='abs(rise_plus["entropy"] - 0.0035355) < 0.00007 and abs(rise_minus["entropy"] + 0.0035355) < 0.00007',
    ),
    Claim(
        id="the-start-lowers-entropy",
        statement="CRReLU as the paper starts it, with eps = 0.01, gives a lower entropy than ReLU.",
        paper_figure="the motivation of the method",
        source="CRReLU",
        relation='rise_plus["entropy"] < 0',
        scales=("laptop", "paper"),
        note="a sign: the derivation gives the opposite one. eps is learned, and in every network here it turns "
        "negative, as the derivation wants",
    ),
    Claim(
        id="eps-falls",
        statement="Every layer learns an eps below its start.",
        paper_figure="not reported",
        source="implied by the derivation",
        relation='largest_eps["crrelu"] < 0.01',
    ),
    Claim(
        id="networks-train",
        statement="Networks with ReLU, CRReLU and GELU learn to tell the digits apart.",
        paper_figure="not comparable",
        source="tables of image classification",
        relation='min(accuracy["relu"], accuracy["crrelu"], accuracy["gelu"]) > 0.65',
        scales=("smoke",),
    ),
    Claim(
        id="better-than-the-others",
        statement="CRReLU is more accurate than ReLU's relatives, GELU, SiLU and Mish.",
        paper_figure="best top-1 of all on CIFAR-10 and CIFAR-100 with three architectures; on ImageNet GELU is "
        "slightly ahead with DeiT-Tiny",
        source="tables of image classification",
        relation=f'accuracy["crrelu"] > {_BEST_OF_OTHERS}',
        direction='accuracy["crrelu"] > max(accuracy["relu"], accuracy["elu"], accuracy["prelu"]) - 0.01',
        scales=("laptop",),
        note="digits of 8×8 pixels; 0.01 is about the standard deviation over seeds",
    ),
    Claim(
        id="better-on-cifar",
        statement="The same with ViT-Tiny on CIFAR-10.",
        paper_figure="best top-1 of all",
        source="table of CIFAR-10",
        relation='accuracy["cifar10-crrelu"] > max('
        + ", ".join(f'accuracy["cifar10-{name}"]' for name in _OTHERS)
        + ")",
        direction='accuracy["cifar10-crrelu"] > accuracy["cifar10-relu"]',
        scales=("paper",),
    ),
    Claim(
        id="better-preference-tuning",
        statement="GPT-2 with CRReLU learns preferences by DPO with larger reward margins than with GELU.",
        paper_figure="larger margin and accuracy for several beta",
        source="table of DPO on SHP and HH",
        relation=" and ".join(f'margin["gpt2-crrelu-{b:g}"] > margin["gpt2-gelu-{b:g}"]' for b in _BETAS),
        scales=("paper",),
    ),
)

PAPER = Paper(
    slug="crrelu",
    title="A Method on Searching Better Activation Functions",
    arxiv="2405.12954",
    date="2024-05",
    venue="ICLR 2025",
    summary=(
        "Of all activations with given bounds, the distribution function of the input leaves the output the most "
        "entropy; the paper takes it for the worst, and moves away from it along the first variation of the entropy. "
        "Applied to ReLU under a normal input this gives CRReLU, max(0, x) + eps x exp(-x²/2), with one learned number "
        "per layer. It is reported to beat GELU and five others in small vision transformers."
    ),
    claims=_CLAIMS,
    scales={
        "smoke": Scale(
            cells=(_ENTROPY, *(_digits(name, 8) for name in ("relu", "crrelu", "gelu"))),
            minutes=0.6,
            note="digits of 8×8 pixels, 8 epochs, one seed, three of seven activations",
        ),
        "laptop": Scale(
            cells=(_ENTROPY, *(_digits(name, 15) for name in ("crrelu", *_OTHERS))),
            seeds=5,
            minutes=8.0,
            note="digits of 8×8 pixels in the place of CIFAR and ImageNet, 15 epochs",
        ),
        "paper": Scale(
            cells=(
                _ENTROPY,
                _digits("crrelu", 15),
                *(_images(name) for name in ("crrelu", *_OTHERS)),
                *(_preference(name, beta) for beta in _BETAS for name in ("gelu", "crrelu")),
            ),
            seeds=3,
            minutes=3000.0,
            hardware="one GPU for about two days",
            note="ViT-Tiny on CIFAR-10 for 100 epochs, and DPO of GPT-2 on HH; the time is an estimate",
        ),
    },
    measure=measure_digits,
    plots=(
        Plot("shape", "lines", "curve_relu|curve_plus|curve_minus", "CRReLU with eps = 0.5 and -0.5, and ReLU", x="x",
             xlabel="x", ylabel="f(x)", cells=("entropy",)),
        Plot("accuracy", "bars", "accuracy", "Test accuracy", ylabel="accuracy"),
        Plot("test_loss", "bars", "test_loss", "Test loss", ylabel="cross-entropy, nats"),
        Plot("training", "lines", "curve_accuracy", "Test accuracy while training", x="epoch", xlabel="epoch",
             ylabel="accuracy", cells=("relu", "crrelu", "gelu")),
        Plot("eps", "bars", "eps_0|eps_1|eps_2|eps_3", "What eps became, by layer", ylabel="eps", cells=("crrelu",),
             reference={"start": 0.01}),
    ),
    methods=("activations.crrelu",),
    notes=(
        "Recipes and tables of the paper were not available; learning rate, epochs and sizes are this project's, the "
        "same for every activation. All models of a seed start from the same weights and see the same batches.",
        "CELU, which the paper lists beside ELU, is the same function with the usual alpha of 1.",
        "eps starts at the paper's 0.01. It and PReLU's slope are left out of weight decay.",
        "The sign of the correction follows this project's own derivation; the paper's formula and start are kept, and "
        "CRReLU(init=...) sets another.",
        "CIFAR-100, ImageNet, DeiT, TNT and the SHP data are measured at no scale here.",
    ),
)  # fmt: skip
