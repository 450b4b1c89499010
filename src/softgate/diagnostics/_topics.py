"""What each kind of figure means and what is normal. Every number here has its source beside it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from softgate.diagnostics._remedies import REMEDIES, is_swapped, line_for
from softgate.diagnostics.figures import Topic

__all__: list[str] = []

_GATES = (
    "gates after attention, which start at exactly 1 and leave the model unchanged until it is trained on: a head can "
    "then do nothing without a sink"
)
#: name -> (title, meaning, normal, source, remedy)
_TEXTS: dict[str, tuple[str, str, str, str, str]] = {
    "sink": (
        "attention sink",
        "heads that have nothing to do park their weight on one token, mostly the first; massive activations and "
        "trouble with quantisation and longer contexts go with it",
        "0.048 with gates, 0.467 without (mean over layers and heads); equal weights give the share named "
        "as uniform",
        "Gated Attention, arXiv 2505.06708, Table 4",
        _GATES,
    ),
    "massive": (
        "massive activations",
        "single features of single tokens are thousands of times larger than the rest: 16-bit sums lose the rest, and "
        "quantisation ranges are wasted",
        "mean over layers of the largest activation: 94 with gates, 1053 without; massive means above 100 and 1000 "
        "times the median",
        "Gated Attention, arXiv 2505.06708, Table 4; definition: Massive Activations, arXiv 2402.17762",
        _GATES,
    ),
    "outliers": (
        "activation outliers",
        "few features carry each token, so INT8 steps are too coarse for the others; "
        "softgate.diagnostics.ptq_evaluate says what it costs",
        "kurtosis about 3 for normal numbers; 18 (OPT, gated) to 72 (BERT, clipped softmax) quantise to 8 bits "
        "almost without loss",
        "Quantizable Transformers, arXiv 2306.12929, section 5 and the figures of its code",
        _GATES + "; in bidirectional models attention=\"clipped_softmax\" works too",
    ),
    "saturation": (
        "attention saturation",
        "in these rows softmax rounds to one key alone: no gradient reaches the scores, which is what logits that grow "
        "towards exact zeros lead to",
        "below 1 % of the rows in the arithmetic of the softmax (float32 in PyTorch's attention)",
        "condition: arXiv 2501.04697, eq. 4; why: Quantizable Transformers, arXiv 2306.12929, section 3",
        "clipped softmax reaches exact zeros with finite scores; the model needs fine-tuning afterwards",
    ),
    "diffuse": (
        "diffuse attention",
        "the heads average over all keys instead of choosing: nothing learned yet, or too little scale for this length",
        "entropy / ln(keys) below 0.945, which random keys give already at a vanishing query norm",
        "NaLaFormer, table of row entropies (n = 256, d = 32)",
        "softplus attention with re-weighting sharpens and does not flatten with length; the model needs fine-tuning "
        "afterwards",
    ),
    "collapse": (
        "softmax collapse of the loss",
        "the largest logit has absorbed all others in rounding: loss and gradient of these rows are exactly 0, and "
        "training stops for them",
        "below 1 % of the rows in the dtype of the loss; it happens at a margin of 17 in float32, 7.6 in float16, "
        "5.5 in bfloat16",
        "Grokking at the Edge of Numerical Stability, arXiv 2501.04697, eq. 4",
        "StableMax in the loss; loss=\"collapse_free\" keeps the objective and only repairs its arithmetic; "
        "softgate.optim.OrthoGrad stops the growth of the logits",
    ),
    "routing": (
        "router balance",
        "busy experts are the bottleneck, and experts that get no token learn nothing",
        "max violation (largest load / mean - 1) below 0.25 once balanced, 1.5 to 1.9 before; no dead experts",
        "measured with the balancing bias of arXiv 2408.15664 (16 experts, 2 per token)",
        "independent sigmoid scores, balanced with softgate.routing.load_balancing_loss; in a layer of "
        "softgate.routing a SigmoidBias gate and balance_after(optimizer, model)",
    ),
    "lipschitz": (
        "Lipschitz constant of the head",
        "how far logits can move when the features move by 1; a decision is certain within margin / (√2 · constant)",
        "no fixed limit: compare the radius with the size of the changes that are expected",
        "LipSDP, arXiv 2401.14033 (product bound)",
        "a large-margin head with weight decay keeps the constant small for the margin it reaches; "
        "softgate.diagnostics.lipschitz_bound proves a smaller constant for heads of several layers",
    ),
}  # fmt: skip


def topics_for(model: nn.Module, names: Iterable[str], length: int) -> dict[str, Topic]:
    """The named topics with the remedy's line for ``model``; ``length``: tokens it was seen with."""
    found = {}
    for name in names:
        title, meaning, normal, source, remedy = _TEXTS[name]
        line, swap = line_for(model, name, length)
        place = REMEDIES[name][0]
        if place and is_swapped(model, place):
            remedy = f"{remedy}. Something is swapped into {place} already: train it, or softgate.unswap(model) first"
        found[name] = Topic(name, title, meaning, normal, source, remedy, line, swap)
    return found
