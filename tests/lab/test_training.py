"""The training loop: what it computes, what it records, what it refuses, and that it is thin."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import a_run, batches, config, loss, make, weights
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.lab import seeds
from softgate.lab.cell import EVENTS
from softgate.lab.schedules import lr_factor
from softgate.lab.training import fit


def test_it_is_the_loop_one_would_write_by_hand() -> None:
    model, c = make(), config(warmup=3, weight_decay=0.1, clip=0.5)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    losses, rates = [], []
    for step in range(10):
        rate = (step + 1) / 3 if step < 3 else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 3) / 6))
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * rate
        optimizer.zero_grad()
        value = loss(model, batches(step))
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(value.item())
        rates.append(0.01 * rate)

    other = make()
    history = fit(other, loss, c, batches=batches)
    assert history["loss"] == losses
    assert torch.equal(weights(other), weights(model))
    assert history["step"] == list(range(1, 11))
    np.testing.assert_allclose(history["lr"], rates, rtol=1e-12)


def test_schedules() -> None:
    assert [lr_factor(s, steps=100, warmup=4) for s in (0, 3, 4)] == [0.25, 1.0, 1.0]
    assert lr_factor(99, steps=100, warmup=4) == pytest.approx(0.1, abs=1e-12)
    assert lr_factor(52, steps=101, warmup=4, min_ratio=0.0) == pytest.approx(0.5)
    assert lr_factor(99, steps=100, warmup=4, schedule="constant") == 1.0
    assert lr_factor(0, steps=1) == 1.0


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    def plain(step: int) -> tuple[Tensor, Tensor]:
        return batches(step)[0][:11], batches(step)[1][:11]  # 11 rows in 4 parts: 3, 3, 3, 2

    whole, cut = make().eval(), make().eval()
    for model in (whole, cut):
        model[2] = nn.Identity()
    first = fit(whole, loss, config(), batches=plain)
    second = fit(cut, loss, config(grad_accumulation=4), batches=plain)
    np.testing.assert_allclose(second["loss"], first["loss"], rtol=1e-5)
    torch.testing.assert_close(weights(cut), weights(whole), rtol=1e-4, atol=1e-5)


def test_micro_batches_weighted_by_their_tokens() -> None:
    def masked(step: int) -> tuple[Tensor, Tensor]:
        x, y = batches(step)
        return x, torch.where(torch.arange(12) % 5 == step % 5, y, -100)

    whole, cut = make(), make()
    for model in (whole, cut):
        model[2] = nn.Identity()
    first = fit(whole, loss, config(), batches=masked)
    second = fit(
        cut, loss, config(grad_accumulation=2), batches=masked, batch_weight=lambda b: float((b[1] != -100).sum())
    )
    np.testing.assert_allclose(second["loss"], first["loss"], rtol=1e-5)
    torch.testing.assert_close(weights(cut), weights(whole), rtol=1e-4, atol=1e-5)


def test_figures_of_steps_and_of_evaluations(tmp_path: Path) -> None:
    def with_figures(model: nn.Module, batch: Any) -> tuple[Tensor, Mapping[str, Any]]:
        value = loss(model, batch)
        return value, {"double": 2 * value, "constant": 3.0}

    seen: list[tuple[bool, bool]] = []

    def evaluate(model: nn.Module) -> dict[str, Any]:
        seen.append((model.training, torch.is_grad_enabled()))
        return {"accuracy": torch.tensor(0.5), "size": 4}

    history = fit(make(), with_figures, config(eval_every=4), batches=batches, run=a_run(tmp_path), evaluate=evaluate)
    np.testing.assert_allclose(history["double"], 2 * np.array(history["loss"]))
    assert history["constant"] == [3.0] * 10
    assert history["eval_step"] == [4, 8, 10]
    assert history["accuracy"] == [0.5] * 3 and history["size"] == [4.0] * 3
    assert seen == [(False, False)] * 3
    events = [json.loads(line) for line in (tmp_path / EVENTS).read_text().splitlines()]
    assert [e["step"] for e in events if "loss" in e] == list(range(1, 11))
    assert [e["accuracy"] for e in events if "accuracy" in e] == [0.5] * 3
    assert all(e["total"] == 10 for e in events)


def test_a_long_run_reports_about_a_hundred_times(tmp_path: Path) -> None:
    fit(make(), loss, config(steps=1234), batches=lambda step: batches(0), run=a_run(tmp_path))
    assert 100 <= len((tmp_path / EVENTS).read_text().splitlines()) <= 110


def test_how_often_one_evaluates_does_not_change_the_training() -> None:
    def evaluate(model: nn.Module) -> dict[str, float]:
        return {"noise": float(torch.randn(())) + float(np.random.standard_normal())}

    torch.manual_seed(0)
    rare = fit(make(), loss, config(), batches=batches, evaluate=evaluate)
    often = fit(make(), loss, config(eval_every=1), batches=batches, evaluate=evaluate)
    assert often["loss"] == rare["loss"]
    assert often["noise"][-1] == rare["noise"][-1] and len(set(often["noise"])) == 10


def test_stop_when_ends_the_run(tmp_path: Path) -> None:
    counter = iter([0.1, 0.9])
    arguments: dict[str, Any] = {
        "batches": batches,
        "evaluate": lambda m: {"accuracy": next(counter)},
        "stop_when": lambda figures: figures["accuracy"] > 0.5,
    }
    history = fit(make(), loss, config(eval_every=2), run=a_run(tmp_path), **arguments)
    assert len(history["loss"]) == 4
    again = fit(make(), loss, config(eval_every=2), run=a_run(tmp_path, resume=True), **arguments)
    assert again == history  # a finished run is not continued


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_given_optimizers_keep_the_ratio_of_their_rates(schedule: str) -> None:
    model = make()
    slow, fast = list(model[0].parameters()), list(model[3].parameters())
    optimizer = torch.optim.SGD([{"params": slow, "lr": 0.1}, {"params": fast, "lr": 1.0}], momentum=0.5)
    history = fit(model, loss, config(lr=7.0, schedule=schedule, warmup=2), batches=batches, optimizer=optimizer)
    last = 1.0 if schedule == "constant" else 0.1
    np.testing.assert_allclose([g["lr"] for g in optimizer.param_groups], [0.1 * last, 1.0 * last])
    np.testing.assert_allclose([history["lr"][0], history["lr"][-1]], [0.05, 0.1 * last])


def test_an_optimizer_may_be_a_function_of_the_parameters() -> None:
    model = make()
    model[0].requires_grad_(False)
    frozen = weights(model[0])
    got: list[Any] = []

    def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        got.extend(parameters)
        return torch.optim.SGD(parameters, lr=0.1)

    fit(model, loss, config(), batches=batches, optimizer=sgd)
    assert [id(p) for p in got] == [id(p) for p in model[3].parameters()]
    assert torch.equal(weights(model[0]), frozen)


def test_an_optimizer_class_is_made_from_the_parameters() -> None:
    history = fit(make(), loss, config(schedule="constant"), batches=batches, optimizer=torch.optim.SGD)
    assert history["lr"] == [1e-3] * 10  # the class's own default


def test_bf16_computes_in_bfloat16_and_keeps_fp32_weights() -> None:
    dtypes = set()

    def spy(model: nn.Module, batch: Any) -> Tensor:
        out = model(batch[0])
        dtypes.add(out.dtype)
        return cross_entropy(out.float(), batch[1])

    model = make()
    fit(model, spy, config(precision="bf16"), batches=batches)
    assert dtypes == {torch.bfloat16} and weights(model).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be an int of at least 1, got 0"),
        ({"steps": 2.5}, r"steps must be an int of at least 1, got 2\.5"),
        ({"warmup": -1}, "warmup must be an int of at least 0"),
        ({"warmup": None}, "warmup must be an int of at least 0"),
        ({"eval_every": 0}, "eval_every must be an int of at least 1"),
        ({"grad_accumulation": 0}, "grad_accumulation must be"),
        ({"lr": -1.0}, "lr must be finite and not negative"),
        ({"lr": math.nan}, "lr must be finite and not negative, got nan"),
        ({"clip": 0.0}, "clip must be positive or None"),
        ({"schedule": "linear"}, "schedule must be one of 'cosine', 'constant'"),
        ({"precision": "fp16"}, "precision must be one of 'fp32', 'bf16'"),
        ({"strategy": "zero"}, "strategy must be one of 'ddp', 'fsdp'"),
    ],
)
def test_bad_configurations_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (lambda v: v[None], ArgumentTypeError, "step_loss must return a scalar tensor with a gradient"),
        (lambda v: v.detach(), ArgumentTypeError, "step_loss must return a scalar tensor with a gradient"),
        (lambda v: v.item(), ArgumentTypeError, "step_loss must return a scalar tensor with a gradient"),
        (lambda v: (v, {"lr": 0.0}), ArgumentValueError, "the figure 'lr' is taken"),
        (lambda v: (v, {"step": 0.0}), ArgumentValueError, "the figure 'step' is taken"),
    ],
)
def test_bad_step_results_are_named(result: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit(make(), lambda m, b: result(loss(m, b)), config(), batches=batches)


def test_bad_arguments_are_named() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"evaluate": lambda m: {"loss": 1.0}}, "the figure 'loss' is taken"),
        ({"optimizer": lambda ps: 3}, "optimizer must have step, .*; int lacks"),
        ({"batches": lambda step: torch.tensor(1.0)}, "batch must hold tensors"),
        ({"batches": lambda step: (torch.ones(3, 6), torch.ones(2))}, "batch must hold tensors.*got 2, 3"),
    ]
    for changes, message in cases:
        with pytest.raises((ArgumentTypeError, ArgumentValueError), match=message):
            fit(make(), loss, config(grad_accumulation=2), **{"batches": batches, **changes})
    with pytest.raises(ArgumentTypeError, match="model must have a parameter with requires_grad"):
        fit(nn.Tanh(), loss, config(), batches=batches)
    names = iter(["a", "b"])
    with pytest.raises(
        ArgumentValueError, match="evaluate must return the same figures every time, it differed in a, b"
    ):
        fit(make(), loss, config(eval_every=5), batches=batches, evaluate=lambda m: {next(names): 0.0})


def test_derived_seeds_are_fixed_and_distinct() -> None:
    assert seeds.derive(0, "data", 1) == seeds.derive(0, "data", 1)
    many = {seeds.derive(s, name, i) for s in range(10) for name in ("data", "eval") for i in range(100)}
    assert len(many) == 2000 and all(0 <= value < 2**63 for value in many)


def test_the_loop_costs_little_beyond_torch(tmp_path: Path) -> None:
    """Neighbouring trials in processor time of this thread: a loaded machine slows both alike."""
    model = nn.Linear(4, 1)
    x, y = torch.ones(4, 4), torch.ones(4, 1)
    steps = 500

    def bare() -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        for _ in range(steps):
            optimizer.zero_grad()
            mse_loss(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    def ours() -> None:
        run = a_run(tmp_path)
        fit(model, lambda m, b: mse_loss(m(b[0]), b[1]), config(steps=steps), batches=lambda step: (x, y), run=run)

    def timed(function: Any) -> float:
        started = time.thread_time()
        function()
        return (time.thread_time() - started) / steps

    bare(), ours()
    pairs = [(timed(bare), timed(ours)) for _ in range(4)]
    least, full = min(pairs, key=lambda pair: pair[1] / pair[0])
    print(f"{(full - least) * 1e6:.0f} us per step beyond {least * 1e6:.0f} us of torch")
    assert full < 1.3 * least
