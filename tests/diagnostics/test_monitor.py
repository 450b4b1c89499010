"""TrainingMonitor: looks when it is due, leaves nothing behind, warns once."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from softgate.diagnostics import DiagnosisWarning, TrainingMonitor, report
from softgate.diagnostics._observe.observer import Observer
from softgate.errors import SoftgateError
from softgate.models import GPT, GPTConfig

TOKENS = torch.arange(24).view(2, 12) % 16


def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(16, num_layers=2, num_heads=2, embed_dim=16))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def modes() -> int:
    return int(torch.overrides._len_torch_function_stack())  # type: ignore[attr-defined]


def test_steps_that_are_not_due_touch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, armed, registered = gpt(), [], []
    monkeypatch.setattr(Observer, "arm", lambda self, arm=Observer.arm: (armed.append(1), arm(self)))
    for name in ("register_forward_hook", "register_forward_pre_hook"):
        original = getattr(nn.Module, name)

        def counted(self: nn.Module, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            registered.append(self)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(nn.Module, name, counted)
    monitor = TrainingMonitor(model, every=5, warn=None)
    counts = []
    for _ in range(11):
        before = len(registered)
        monitor.step()
        assert modes() == 0
        counts.append((len(registered) - before, hooks(model)))
        model(TOKENS)
        assert hooks(model) == 0 and modes() == 0
    looked = [index for index, (added, there) in enumerate(counts) if added or there]
    assert looked == [0, 5, 10] and len(armed) == 3
    assert [step for step, _ in monitor.history] == [0, 5, 10]


def test_figures_are_those_of_a_report_on_the_same_batch() -> None:
    model = gpt()
    seen: list[tuple[int, dict[str, float]]] = []
    monitor = TrainingMonitor(model, rows=32, sequences=4, tokens=1024, warn=None, log=lambda *a: seen.append(a))
    monitor.step(400)
    model(TOKENS).sum().backward()
    assert seen == list(monitor.history) and seen[0][0] == 400
    assert seen[0][1] == pytest.approx(report(model, [TOKENS]).summary(), rel=1e-5)


def test_training_is_not_changed_by_a_bit() -> None:
    losses = []
    for every in (1, 10**6):
        model = gpt()
        monitor = TrainingMonitor(model, every=every, warn=None)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(3):
            monitor.step(step + 1)
            loss = functional.cross_entropy(model(TOKENS[:, :-1]).flatten(0, 1), TOKENS[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == losses[1]


def test_one_warning_per_kind_of_finding() -> None:
    model = nn.Sequential(nn.Identity())
    monitor = TrainingMonitor(model, every=1)
    x = torch.zeros(4, 5)
    x[:, 0] = 100.0
    monitor.step()
    with pytest.warns(DiagnosisWarning, match=r"softmax collapse.*step 0.*stablemax_cross_entropy"):
        model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.step()
        model(x)
    quiet = TrainingMonitor(model, every=1, warn=None)
    quiet.step()
    model(x)
    assert quiet.report is not None and quiet.report.findings[0].topic == "collapse"


def test_a_step_without_a_forward_pass_leaves_no_hooks() -> None:
    model = gpt()
    monitor = TrainingMonitor(model, every=2)
    monitor.step()
    assert hooks(model) > 0
    monitor.step()
    assert hooks(model) == 0 and not monitor.history
    monitor.step()
    monitor.close()
    assert hooks(model) == 0


def test_an_error_in_the_forward_pass_leaves_no_hooks() -> None:
    model = gpt()
    monitor = TrainingMonitor(model, every=1, warn=None)
    monitor.step()
    with pytest.raises(IndexError):
        model(torch.full((1, 4), 99))
    assert hooks(model) == 0 and modes() == 0 and not monitor.history


def test_compiled_models_are_watched() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            q = self.layer(x).unflatten(-1, (2, 4)).transpose(1, 2)
            return functional.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)

    calls: list[int] = []

    def backend(module: Any, _inputs: Any) -> Any:
        calls.append(1)
        return module.forward

    model = Attends()
    compiled: Any = torch.compile(model, backend=backend)
    monitor = TrainingMonitor(compiled, every=2, warn=None)
    outputs = []
    x = torch.randn(2, 5, 8)
    for _ in range(4):
        monitor.step()
        outputs.append(compiled(x))
    assert [sorted(figures)[0] for _, figures in monitor.history] == ["attention_entropy"] * 2
    assert all(torch.allclose(outputs[0], out) for out in outputs) and len(calls) == 1


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": 3}, "model"),
    ({"every": 0}, "every"),
    ({"every": 1.5}, "every"),
    ({"warn": "loud"}, "warn"),
    ({"log": "print"}, "log"),
    ({"loss_dtype": torch.int8}, "loss_dtype"),
    ({"keep": 0}, "keep"),
]


@pytest.mark.parametrize(("options", "word"), BAD, ids=range(len(BAD)))
def test_bad_arguments(options: dict[str, Any], word: str) -> None:
    with pytest.raises(SoftgateError, match=word):
        TrainingMonitor(**{"model": nn.Linear(2, 2), **options})
