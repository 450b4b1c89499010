"""From figures to findings. A limit without a source beside it does not belong here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from softgate.diagnostics.figures import (
    SEVERITIES,
    ActivationFigures,
    AttentionFigures,
    Finding,
    LogitFigures,
    RouterFigures,
    Severity,
    mean,
)

__all__: list[str] = []

#: First-token share at which arXiv 2505.06708 says the sink is back (gates shared by all heads), and that of its
#: model without gates (Table 4).
SINK, SINK_HIGH = 0.301, 0.467
#: A share counts as a sink only well above what equal weights give: short inputs put much on every token.
SINK_OVER_UNIFORM = 2.0
#: Massive activations by definition: above 100, and 1000 times the median (arXiv 2402.17762).
MASSIVE, MASSIVE_OVER_MEDIAN = 100.0, 1000.0
#: Largest activation, mean over layers, of the model without gates in arXiv 2505.06708, Table 4.
MASSIVE_HIGH = 1053.0
#: Mean kurtosis of a BERT that quantises to 8 bits almost without loss (arXiv 2306.12929, figures of its code).
KURTOSIS = 72.0
#: k equal features that stick out of n give a kurtosis of n / k: half the width means that two carry the token.
KURTOSIS_OF_WIDTH = 0.5
#: Share of collapsed rows above which arXiv 2501.04697's condition is worth a warning (its specification here: 1 %).
COLLAPSE = 0.01
#: Relative entropy of random keys (n = 256, d = 32) at a query norm of 0.1: 5.24 / ln 256 (NaLaFormer's table).
DIFFUSE = 0.945
#: Max violation of a balanced router after 600 steps (balancing pilot: always below 0.25).
VIOLATION = 0.25
#: Assignments per expert below which an expert without any says nothing: at 20 expected, chance is e⁻²⁰.
ENOUGH = 20.0
_NAMED = 5


def findings(
    attention: Sequence[AttentionFigures],
    activations: Sequence[ActivationFigures],
    routers: Sequence[RouterFigures],
    logits: LogitFigures | None,
) -> list[Finding]:
    """Everything outside what is normal, the worst first."""
    found = [*_sink(attention), *_massive(activations), *_outliers(activations), *_saturation(attention)]
    found += [*_diffuse(attention), *_routing(routers), *(_collapse(logits) if logits is not None else ())]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def sink_of(layer: AttentionFigures) -> float:
    """The share of the first token or, where that is larger, of the key that receives most; mean over heads."""
    return max(mean(layer.sink_share), mean(layer.top_share))


def _sink(attention: Sequence[AttentionFigures]) -> Iterator[Finding]:
    layers = [a for a in attention if sink_of(a) > SINK_OVER_UNIFORM * a.uniform_share]
    bad = sorted((a for a in layers if sink_of(a) >= SINK), key=sink_of, reverse=True)
    if not bad:
        return
    overall = mean([sink_of(a) for a in attention])
    worst = bad[0]
    shares = [[max(pair) for pair in zip(a.sink_share, a.top_share, strict=True)] for a in attention]
    heads = sum(share >= SINK for layer in shares for share in layer)
    head = max(range(len(worst.sink_share)), key=lambda h: max(worst.sink_share[h], worst.top_share[h]))
    first = mean(worst.sink_share) >= SINK_OVER_UNIFORM * worst.uniform_share
    token = "the first token" if first else f"single tokens (head {head}: token {worst.top_key[head]})"
    yield Finding(
        "high" if overall >= SINK_HIGH else "warning",
        "sink",
        [a.name for a in bad],
        f"{heads} of {sum(map(len, shares))} heads put {SINK:.0%} or more of their weight on {token}; mean over all "
        f"{overall:.1%}, equal weights would give {worst.uniform_share:.1%}; worst head {head} of "
        f"{worst.name or 'the model'}: {max(worst.sink_share[head], worst.top_share[head]):.1%}",
    )


def _massive(activations: Sequence[ActivationFigures]) -> Iterator[Finding]:
    bad = [a for a in activations if a.max_abs > MASSIVE and a.max_abs > MASSIVE_OVER_MEDIAN * a.median_abs]
    if bad:
        bad.sort(key=lambda a: a.max_abs, reverse=True)
        overall = mean([a.max_abs for a in activations])
        yield Finding(
            "high" if overall >= MASSIVE_HIGH else "warning",
            "massive",
            [a.name for a in bad],
            f"largest activation {bad[0].max_abs:.0f} in {bad[0].name}, where the median is {bad[0].median_abs:.2g}; "
            f"mean over layers of the largest {overall:.0f}",
        )


def _outliers(activations: Sequence[ActivationFigures]) -> Iterator[Finding]:
    bad = [a for a in activations if a.kurtosis > min(KURTOSIS, KURTOSIS_OF_WIDTH * a.width)]
    if bad:
        bad.sort(key=lambda a: a.kurtosis, reverse=True)
        yield Finding(
            "warning",
            "outliers",
            [a.name for a in bad],
            f"kurtosis {bad[0].kurtosis:.1f} in {bad[0].name} (worst token {bad[0].peak_kurtosis:.0f}, "
            f"{bad[0].width} features)",
        )


def _saturation(attention: Sequence[AttentionFigures]) -> Iterator[Finding]:
    bad = [a for a in attention if a.collapse.get("float32", 0.0) > COLLAPSE]
    if bad:
        bad.sort(key=lambda a: a.collapse["float32"], reverse=True)
        largest = max(bad[0].max_logit or [0.0])
        yield Finding(
            "warning",
            "saturation",
            [a.name for a in bad],
            f"{bad[0].collapse['float32']:.1%} of the rows of {bad[0].name} round to one key in float32 (largest score "
            f"{largest:.0f})",
        )


def _diffuse(attention: Sequence[AttentionFigures]) -> Iterator[Finding]:
    bad = [a for a in attention if mean(a.entropy) > DIFFUSE]
    if bad:
        bad.sort(key=lambda a: mean(a.entropy), reverse=True)
        yield Finding(
            "info",
            "diffuse",
            [a.name for a in bad],
            f"{len(bad)} of {len(attention)} layers weight their keys almost equally: entropy up to "
            f"{mean(bad[0].entropy):.3f} of its largest value",
        )


def _routing(routers: Sequence[RouterFigures]) -> Iterator[Finding]:
    counted = [r for r in routers if sum(r.load) >= ENOUGH * len(r.load)]
    dead = [r for r in counted if r.dead]
    if dead:
        dead.sort(key=lambda r: len(r.dead), reverse=True)
        shown = ", ".join(map(str, dead[0].dead[:_NAMED])) + (", …" if len(dead[0].dead) > _NAMED else "")
        yield _routing_finding("high", dead, f"no token chose {len(dead[0].dead)} of {len(dead[0].load)} experts of "
                               f"{dead[0].name}: {shown}")  # fmt: skip
    uneven = [r for r in counted if r not in dead and r.max_violation > VIOLATION + _counting_noise(r)]
    if uneven:
        uneven.sort(key=lambda r: r.max_violation, reverse=True)
        yield _routing_finding("warning", uneven, f"the busiest expert of {uneven[0].name} gets "
                               f"{1 + uneven[0].max_violation:.2f} times the mean load")  # fmt: skip


def _routing_finding(severity: Severity, routers: Sequence[RouterFigures], measured: str) -> Finding:
    return Finding(severity, "routing", [r.name for r in routers], measured)


def _counting_noise(router: RouterFigures) -> float:
    """Three standard deviations of load / mean if every expert were equally likely."""
    return 3.0 * float((len(router.load) / sum(router.load)) ** 0.5)


def _collapse(logits: LogitFigures) -> Iterator[Finding]:
    share = logits.collapse[logits.loss_dtype]
    margin = f"median margin {logits.median_margin:.1f}"
    if share > COLLAPSE:
        yield Finding(
            "high", "collapse", ["logits"], f"{share:.1%} of the rows have collapsed in {logits.loss_dtype} ({margin})"
        )
        return
    lower = [name for name, other in logits.collapse.items() if other > COLLAPSE and name != logits.loss_dtype]
    if lower:
        shares = ", ".join(f"{logits.collapse[name]:.1%} in {name}" for name in lower)
        yield Finding(
            "info", "collapse", ["logits"], f"none to speak of in {logits.loss_dtype}, but {shares} ({margin})"
        )
