"""What a report holds: plain figures, what they mean, and what was found; everything is JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = [
    "ActivationFigures", "AttentionFigures", "Finding", "HeadFigures", "LogitFigures", "Report", "RouterFigures",
    "Topic",
]  # fmt: skip

Severity = Literal["high", "warning", "info"]
#: From what needs attention to what is only worth knowing.
SEVERITIES: tuple[Severity, ...] = ("high", "warning", "info")


@dataclass(frozen=True)
class AttentionFigures:
    """One attention module; lists have one entry per head, all are means over the sampled queries.

    Attributes:
        name: the module's name in the model.
        keys: the largest number of keys seen.
        rows: sampled queries, over all sequences.
        sink_share: weight on the first visible token.
        uniform_share: what equal weights over the visible keys would put there.
        top_share: weight on the key that receives most, and
        top_key: which one that was (in the last sequence).
        entropy: entropy of the weights divided by ln(visible keys): 0 is one key, 1 is all equally.
        max_logit: largest absolute score before softmax; None where only weights can be seen.
        logit_std: standard deviation of the scores over the keys, mean over heads; None likewise.
        collapse: dtype -> share of rows whose softmax rounds to one key alone; empty likewise.
    """

    name: str
    keys: int
    rows: int
    sink_share: list[float]
    uniform_share: float
    top_share: list[float]
    top_key: list[int]
    entropy: list[float]
    max_logit: list[float] | None
    logit_std: float | None
    collapse: dict[str, float]


@dataclass(frozen=True)
class ActivationFigures:
    """The hidden states that one module gives out.

    Attributes:
        name: the module's name.
        width: features of a token.
        tokens: tokens looked at.
        max_abs: largest absolute feature of any token.
        median_abs: median absolute feature.
        inf_norm: largest absolute feature of a token, mean over tokens.
        kurtosis: kurtosis over the features of a token, mean over tokens; about 3 for normal numbers.
        peak_kurtosis: that of the token with the largest.
    """

    name: str
    width: int
    tokens: int
    max_abs: float
    median_abs: float
    inf_norm: float
    kurtosis: float
    peak_kurtosis: float


@dataclass(frozen=True)
class RouterFigures:
    """One router of a mixture of experts.

    Attributes:
        name: the module's name.
        tokens: tokens routed.
        load: assignments of each expert.
        max_violation: largest load divided by the mean load, minus 1.
        load_entropy: entropy of the load divided by ln(experts): 1 is a perfect balance.
        router_entropy: entropy of softmax(logits) divided by ln(experts), mean over tokens.
        dead: experts that no token chose.
    """

    name: str
    tokens: int
    load: list[int]
    max_violation: float
    load_entropy: float
    router_entropy: float
    dead: list[int]


@dataclass(frozen=True)
class LogitFigures:
    """The logits that the model ends in.

    Attributes:
        dtype: of the logits as the model gives them.
        loss_dtype: in which the loss is taken to be computed.
        classes: how many.
        rows: rows looked at.
        std: standard deviation over the classes, mean over rows.
        max_abs: largest absolute logit.
        median_margin: median of a row's largest logit minus the second largest.
        collapse: dtype -> share of rows whose softmax rounds to one class alone.
    """

    dtype: str
    loss_dtype: str
    classes: int
    rows: int
    std: float
    max_abs: float
    median_margin: float
    collapse: dict[str, float]


@dataclass(frozen=True)
class HeadFigures:
    """A small head of linear layers.

    Attributes:
        name: the module's name.
        lipschitz: bound on how much it lengthens a change of its input (Euclidean norms).
        exact: whether that is the constant itself (one linear layer) and not a bound from above.
        radius: change of the features that the median decision survives for certain, margin / (√2 · lipschitz); None
            without logits, or where the head is not what they come from.
    """

    name: str
    lipschitz: float
    exact: bool
    radius: float | None


@dataclass(frozen=True)
class Topic:
    """How to read one kind of figure, and what to do about it in this model.

    Attributes:
        name: short name.
        title: what it is called.
        meaning: what a bad value does.
        normal: what is normal.
        source: where both come from.
        remedy: what in this library applies, in words.
        line: the same as one line of code.
        swap: the arguments of :func:`softgate.swap` in that line; empty where the model has no place for a swap.
        refused: why the swap was refused when it was tried on this model; empty if it was not tried or worked.
    """

    name: str
    title: str
    meaning: str
    normal: str
    source: str
    remedy: str
    line: str
    swap: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


@dataclass(frozen=True)
class Finding:
    """Something outside what is normal.

    Attributes:
        severity: ``"high"``, ``"warning"`` or ``"info"``.
        topic: name of the :class:`Topic` that says what it means and what to do.
        where: module names, the worst first.
        measured: the figures, in words.
    """

    severity: Severity
    topic: str
    where: list[str]
    measured: str


@dataclass(frozen=True)
class Report:
    """Result of :func:`softgate.diagnostics.report`.

    Attributes:
        model: class of the model.
        passes: forward passes that were looked at.
        attention: one entry per attention module, in order of the first call.
        activations: one entry per layer and feed-forward part.
        routers: one entry per router.
        logits: None if the model gives none.
        heads: small heads.
        topics: how to read the figures: name -> topic.
        findings: what is outside what is normal, the worst first.
        notes: what could not be looked at and why.
    """

    model: str
    passes: int
    attention: list[AttentionFigures]
    activations: list[ActivationFigures]
    routers: list[RouterFigures]
    logits: LogitFigures | None
    heads: list[HeadFigures]
    topics: dict[str, Topic]
    findings: list[Finding]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values; numbers that are not finite become None."""
        found: dict[str, Any] = _plain(asdict(self))
        return found

    def summary(self) -> dict[str, float]:
        """One number per kind of figure, for logging during training; only what was seen.

        Means over layers and heads of the sink share and the entropy, otherwise the worst over layers.
        """
        found: dict[str, float] = {}
        if self.attention:
            found["sink_share"] = mean([mean(a.sink_share) for a in self.attention])
            found["attention_entropy"] = mean([mean(a.entropy) for a in self.attention])
        largest = [max(a.max_logit) for a in self.attention if a.max_logit]
        if largest:
            found["max_attention_logit"] = max(largest)
        if self.activations:
            found["max_activation"] = max(a.max_abs for a in self.activations)
            found["kurtosis"] = max(a.kurtosis for a in self.activations)
        if self.logits is not None:
            found["logit_std"] = self.logits.std
            found["softmax_collapse"] = self.logits.collapse[self.logits.loss_dtype]
        if self.routers:
            found["max_violation"] = max(r.max_violation for r in self.routers)
            found["dead_experts"] = float(sum(len(r.dead) for r in self.routers))
        return found


def mean(values: list[float]) -> float:
    """Arithmetic mean of one value or more."""
    return sum(values) / len(values)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
