"""Watching a training: a report every few hundred steps, and a warning when it leaves what is normal."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable

import torch
from torch import nn

from softgate._checks import check_sizes
from softgate.diagnostics._observe.observer import Observer, Sampling
from softgate.diagnostics.figures import SEVERITIES, Report
from softgate.diagnostics.reporting import check_loss_dtype, original, report_of
from softgate.errors import bad_type, check_choice

__all__ = ["DiagnosisWarning", "TrainingMonitor"]


class DiagnosisWarning(UserWarning):
    """A training shows something outside what is normal."""


class TrainingMonitor:
    """Looks at one forward pass every ``every`` steps, keeps and logs its figures, and warns once per kind of finding.

    Between these passes nothing is on the model, no hook and no function mode: :meth:`step` only counts. The pass that
    is looked at runs uncompiled. Figures are of that single batch, so routers and logits are judged on few tokens.

    Args:
        model: the module whose forward passes are watched (inside DDP or FSDP: the wrapped one).
        every: look at the first pass after step 0, ``every``, 2 · ``every``, ….
        warn: the mildest severity that warns: ``"high"``, ``"warning"`` or ``"info"``; None never warns.
        log: called as ``log(step, figures)`` after each look, with the numbers of :meth:`Report.summary`.
        rows: queries per sequence and attention.
        sequences: sequences per batch whose attention is looked at.
        tokens: tokens of which kurtosis and logits are taken.
        loss_dtype: as for :func:`softgate.diagnostics.report`.
        keep: number of entries kept in ``history``.

    Attributes:
        history: the latest ``(step, figures)`` pairs.
        report: the latest :class:`~softgate.diagnostics.Report`, None before the first look.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> monitor = TrainingMonitor(model, every=100)
        >>> for step in range(3):
        ...     monitor.step()
        ...     loss = model(torch.randn(2, 4)).sum()
        >>> [(step, sorted(figures)) for step, figures in monitor.history]
        [(0, ['logit_std', 'softmax_collapse'])]
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 200,
        *,
        warn: str | None = "warning",
        log: Callable[[int, dict[str, float]], None] | None = None,
        rows: int = 16,
        sequences: int = 2,
        tokens: int = 512,
        loss_dtype: torch.dtype | None = None,
        keep: int = 1000,
    ) -> None:
        if not isinstance(model, nn.Module):
            bad_type("model", model, "a torch.nn.Module")
        check_sizes(every=every, rows=rows, sequences=sequences, tokens=tokens, keep=keep)
        if warn is not None:
            check_choice("warn", warn, SEVERITIES)
        if log is not None and not callable(log):
            bad_type("log", log, "a function log(step, figures) or None")
        check_loss_dtype(loss_dtype)
        self.every, self.log = every, log
        self.history: deque[tuple[int, dict[str, float]]] = deque(maxlen=keep)
        self.report: Report | None = None
        self._severities = () if warn is None else SEVERITIES[: SEVERITIES.index(warn) + 1]
        self._loss_dtype = loss_dtype
        self._observer = Observer(original(model), Sampling(rows, sequences, tokens), once=True, done=self._seen)
        self._next, self._step = 0, 0
        self._warned: set[str] = set()

    def step(self, step: int | None = None) -> None:
        """Say that a training step begins, before its forward pass.

        Args:
            step: its number; None counts the calls from 0.
        """
        self._step = self._next if step is None else step
        self._next = self._step + 1
        if self._step % self.every == 0:
            self._observer.clear()
            self._observer.arm()
        elif self._observer.armed:  # the step that was to be looked at had no forward pass of this model
            self._observer.disarm()

    def close(self) -> None:
        """Take off what may still be on the model."""
        self._observer.disarm()

    def _seen(self) -> None:
        self.report = report_of(self._observer, self._loss_dtype, with_heads=False)
        figures = self.report.summary()
        self.history.append((self._step, figures))
        if self.log is not None:
            self.log(self._step, figures)
        for finding in self.report.findings:
            if finding.severity in self._severities and finding.topic not in self._warned:
                self._warned.add(finding.topic)
                topic = self.report.topics[finding.topic]
                warnings.warn(
                    f"{topic.title} at step {self._step}: {finding.measured}. Normal: {topic.normal}. Remedy: "
                    f"{topic.line}",
                    DiagnosisWarning,
                    stacklevel=2,
                )
