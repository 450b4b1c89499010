"""The page of ``softgate diagnose``: findings, a heat map of sinks over layers and heads, every figure."""

from __future__ import annotations

import math
from pathlib import Path

from softgate.diagnostics import Report
from softgate.diagnostics.figures import mean
from softgate.lab.diagnosis import remedy_lines
from softgate.lab.environment import environment
from softgate.lab.files import write_atomic, write_json
from softgate.lab.page.html import Markup, document, table, tag
from softgate.lab.page.paper import environment_list, pictures
from softgate.lab.paper import Plot
from softgate.lab.plots import draw
from softgate.lab.verdicts import Rows

PAGE, DATA = "index.html", "diagnosis.json"
_KINDS = {"high": "bad", "warning": "fair", "info": "none"}


def write_diagnosis(folder: Path, found: Report, source: str) -> Path:
    """Write the page and the figures as JSON into ``folder``; returns the page."""
    write_json(folder / DATA, found.to_json())
    write_atomic(folder / PAGE, diagnosis_page(found, source))
    return folder / PAGE


def diagnosis_page(found: Report, source: str) -> str:
    """A self-contained page; all text is escaped."""
    return document(
        f"{source} — softgate diagnose",
        tag("p", f"softgate diagnose · {found.model} · {found.passes} forward passes", cls="soft"),
        tag("h1", source),
        tag("h2", "Findings"),
        *_findings(found),
        *pictures(heat_maps(found)),
        *_attention(found),
        *_activations(found),
        *_routers(found),
        *_ends(found),
        tag("h2", "How to read the figures"),
        table(["figure", "a bad value", "normal", "remedy"], [
            [t.title, t.meaning, tag("div", t.normal, tag("p", t.source, cls="soft")),
             tag("div", t.remedy, tag("p", tag("code", t.line)))]
            for t in found.topics.values()
        ]),
        *([tag("h2", "Notes"), tag("ul", *[tag("li", note) for note in found.notes])] if found.notes else []),
        tag("h2", "Machine and versions"),
        environment_list(environment()),
    )  # fmt: skip


def heat_maps(found: Report) -> dict[str, str]:
    """Title -> SVG: the first token's share and the entropy of every head (rows: layers)."""
    if not found.attention:
        return {}
    heads = max(len(layer.sink_share) for layer in found.attention)

    def matrix(values: list[list[float]]) -> list[list[float]]:
        return [row + [math.nan] * (heads - len(row)) for row in values]

    rows: Rows = {
        "weight on the first token": [{"heads": matrix([a.sink_share for a in found.attention])}],
        "entropy / ln(keys)": [{"heads": matrix([a.entropy for a in found.attention])}],
    }
    title = "Attention by layer and head"
    svg = draw(Plot("heads", "heatmaps", "heads", title, xlabel="head", ylabel="attention, in order of call"), rows)
    return {} if svg is None else {title: svg}


def _findings(found: Report) -> list[Markup]:
    if not found.findings:
        return [tag("p", tag("span", "✓ everything that was seen is within what is normal", cls="good"))]
    rows = []
    for finding in found.findings:
        shown = ", ".join(finding.where[:6]) + (f" and {len(finding.where) - 6} more" if len(finding.where) > 6 else "")
        lines = [
            tag("p", tag("strong", f"{heading}: "), tag("code", text) if heading == "code" else text)
            for heading, text in remedy_lines(found, finding)
        ]
        severity = tag("span", finding.severity, cls=f"verdict {_KINDS[finding.severity]}")
        rows.append([severity, tag("div", tag("strong", found.topics[finding.topic].title), tag("p", finding.measured),
                                   tag("p", shown, cls="soft")), tag("div", *lines)])  # fmt: skip
    return [table(["severity", "what", "what it means and what to do"], rows)]


def _attention(found: Report) -> list[Markup]:
    if not found.attention:
        return []
    header = ["attention", "keys", "first token", "equal weights", "worst head", "entropy", "largest score",
              "collapsed (float32)", "collapsed (bfloat16)"]  # fmt: skip
    rows = [
        [a.name or "(model)", a.keys, f"{mean(a.sink_share):.4f}", f"{a.uniform_share:.4f}", f"{max(a.sink_share):.4f}",
         f"{mean(a.entropy):.3f}", "" if a.max_logit is None else f"{max(a.max_logit):.2f}",
         *("" if not a.collapse else f"{a.collapse[name]:.2%}" for name in ("float32", "bfloat16"))]
        for a in found.attention
    ]  # fmt: skip
    return [tag("h2", "Attention"), table(header, rows, range(1, len(header)))]


def _activations(found: Report) -> list[Markup]:
    if not found.activations:
        return []
    header = ["module", "largest", "median", "infinity norm", "kurtosis", "worst token's"]
    rows = [
        [a.name, *(f"{v:.4g}" for v in (a.max_abs, a.median_abs, a.inf_norm, a.kurtosis, a.peak_kurtosis))]
        for a in found.activations
    ]
    return [tag("h2", "Activations"), table(header, rows, range(1, len(header)))]


def _routers(found: Report) -> list[Markup]:
    if not found.routers:
        return []
    header = ["router", "experts", "tokens", "max violation", "load entropy", "router entropy", "dead experts"]
    rows = [
        [r.name, len(r.load), r.tokens, *(f"{v:.3f}" for v in (r.max_violation, r.load_entropy, r.router_entropy)),
         ", ".join(map(str, r.dead)) or "none"]
        for r in found.routers
    ]  # fmt: skip
    return [tag("h2", "Routers"), table(header, rows, range(1, len(header)))]


def _ends(found: Report) -> list[Markup]:
    """Logits and heads."""
    parts: list[Markup] = []
    if found.logits is not None:
        ends = found.logits
        header = [
            "classes",
            "rows",
            "deviation",
            "largest",
            "median margin",
            *(f"collapsed, {n}" for n in ends.collapse),
        ]
        row = [ends.classes, ends.rows, f"{ends.std:.4g}", f"{ends.max_abs:.4g}", f"{ends.median_margin:.4g}",
               *(f"{share:.2%}" for share in ends.collapse.values())]  # fmt: skip
        parts += [tag("h2", "Logits"), table(header, [row], range(len(header)))]
    if found.heads:
        rows = [
            [h.name, f"{'' if h.exact else '≤ '}{h.lipschitz:.4g}", "" if h.radius is None else f"{h.radius:.4g}"]
            for h in found.heads
        ]
        parts += [tag("h2", "Small heads"), table(["head", "Lipschitz constant", "certain within"], rows, (1, 2))]
    return parts
