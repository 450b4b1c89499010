"""Simulated quantisation: grids by hand, more bits are better, the model is left as it was, on any module."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from softgate.diagnostics import ptq_evaluate
from softgate.diagnostics._fake_quant import batch_range, round_activations, round_weights
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.models import GPT, GPTConfig


def test_weights_on_a_symmetric_grid() -> None:
    weight = torch.tensor([[-1.0, 0.4], [0.1, 0.05]])
    torch.testing.assert_close(round_weights(weight, 3, "minmax"), torch.tensor([[-1.0, 1 / 3], [0.0, 0.0]]))
    weight = torch.randn(40, 30)
    errors = [(round_weights(weight, bits, "minmax") - weight).abs().max() for bits in range(2, 17)]
    for bits, error in zip(range(2, 17), errors, strict=True):
        assert error <= weight.abs().max() / (2 ** (bits - 1) - 1) / 2 * (1 + 1e-6)
        assert len(round_weights(weight, bits, "minmax").unique()) <= 2**bits - 1
    assert torch.equal(round_weights(torch.zeros(2, 2), 4, "mse"), torch.zeros(2, 2))


def test_the_mse_range_is_never_worse_and_cuts_outliers_off() -> None:
    weight = torch.randn(60, 60)
    weight[0, 0] = 30.0
    errors = {e: (round_weights(weight, 4, e) - weight).square().sum() for e in ("minmax", "mse")}
    assert errors["mse"] < errors["minmax"]
    assert round_weights(weight, 4, "mse").max() < 30.0


def test_activations_on_an_asymmetric_grid() -> None:
    x = torch.tensor([-1.0, 0.0, 0.3, 2.0, 5.0])
    # steps of 3/3 from -1 to 2; beyond the range it saturates
    torch.testing.assert_close(round_activations(x, -1.0, 2.0, 2), torch.tensor([-1.0, 0.0, 0.0, 2.0, 2.0]))
    positive = torch.rand(100) + 3  # 0 belongs to every grid
    assert len(round_activations(positive, 3.0, 4.0, 4).unique()) <= 5
    for bits in range(2, 17):
        y = 4 * torch.rand(1000) - 1
        step = 4 / (2**bits - 1)
        assert (round_activations(y, -1.0, 3.0, bits) - y).abs().max() <= step * (1 + 1e-5)
    assert (round_activations(torch.zeros(3), 0.0, 0.0, 8) == 0).all()
    torch.testing.assert_close(round_activations(x, -1.0, 5.0, 32), x)


def test_percentiles() -> None:
    x = torch.randperm(1000).float()
    assert batch_range(x, 100.0) == (0.0, 999.0)
    assert batch_range(x, 99.0) == (10.0, 989.0)


def test_running_ranges_have_momentum() -> None:
    """One identity layer before the head, two calibration batches: the range is 0.9 old + 0.1 new."""
    net = nn.Sequential(nn.Identity(), nn.Linear(1, 1))
    batches = [torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [11.0]])]
    seen: list[Tensor] = []

    def last_input(model: nn.Module) -> float:
        hook = model[1].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))  # type: ignore[index]
        model(torch.tensor([[50.0]]))
        hook.remove()
        return 0.0

    ptq_evaluate(net, batches, last_input, w_bits=None, a_bits=8)
    assert [float(x) for x in seen] == pytest.approx([50.0, 2.0])
    ptq_evaluate(net, batches, last_input, w_bits=None, a_bits=8, momentum=0.5)
    assert float(seen[-1]) == pytest.approx(6.0)


def model_and_data() -> tuple[GPT, Tensor, Tensor]:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=17, num_layers=2, num_heads=2, embed_dim=32, tied_head=True))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model, torch.randint(17, (6, 12)), torch.randint(17, (6, 12))


def test_more_bits_are_better_and_the_model_is_left_alone() -> None:
    model, tokens, _ = model_and_data()
    exact = model(tokens).detach()
    before = copy.deepcopy(model.state_dict())
    identities = [id(p) for p in model.parameters()]
    grads = torch.randn_like(model.embedding.weight)
    model.embedding.weight.grad = grads

    def error(net: nn.Module) -> float:
        assert not net.training
        return float((net(tokens) - exact).square().mean())

    errors = {}
    for bits in (3, 4, 6, 8, 12, 32):
        report = ptq_evaluate(model.train(), [tokens, tokens], error, bits, bits)
        assert report["full_precision"] == 0.0 and report["head"] == "head"
        errors[bits] = report["quantized"]
    assert errors[3] > errors[4] > errors[6] > errors[8] > errors[12] > errors[32]
    assert errors[8] < 0.05 * float(exact.var()) and errors[32] < 1e-9
    assert model.training and model.head.weight is model.embedding.weight
    assert identities == [id(p) for p in model.parameters()] and model.embedding.weight.grad is grads
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(model(tokens), exact) and not any(m._forward_hooks for m in model.modules())


def test_what_is_rounded() -> None:
    model, tokens, targets = model_and_data()

    def loss(net: nn.Module) -> float:
        return float(cross_entropy(net(tokens).flatten(0, 1), targets.flatten()))

    weights_only = ptq_evaluate(model, [tokens], loss, 4, None)
    assert (weights_only["weights"], weights_only["activations"]) == (15, 0)  # embedding, 2 x (4 + 3)
    activations_only = ptq_evaluate(model, [tokens], loss, None, 4)
    assert activations_only["weights"] == 0 and activations_only["activations"] > 30
    nothing = ptq_evaluate(model, [tokens], loss, None, None)
    assert nothing["quantized"] == nothing["full_precision"]
    assert weights_only["quantized"] != nothing["quantized"] != activations_only["quantized"]
    fewer = ptq_evaluate(model, [tokens], loss, 4, 4, exclude=["blocks.0"])
    assert fewer["weights"] == 8

    def head_weight(net: Any) -> float:  # shared with the embedding, which is rounded
        assert len(net.embedding.weight.unique()) <= 15
        return float((net.head.weight - before).abs().max())

    before = model.head.weight.detach().clone()
    with pytest.raises(AssertionError):  # eval_fn sees the exact model first
        ptq_evaluate(model, [tokens], head_weight, 4, None)
    seen: list[float] = []
    ptq_evaluate(model, [tokens], lambda net: (seen.append((net.head.weight - before).abs().max()), 0.0)[1], 4, 4)
    assert seen == [0.0, 0.0]


def test_a_shared_module_has_a_range_at_each_place() -> None:
    """One activation module after a small and a large layer: with one range for both the small one would be lost."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.small, self.large, self.head = nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)
            nn.init.normal_(self.large.weight, std=300.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.act(self.large(self.act(self.small(x)))))

    net, x = Shared(), torch.randn(64, 8)
    exact = net(x).detach()
    report = ptq_evaluate(net, [x], lambda m: float((m(x) - exact).square().mean() / exact.var()), None, 8)
    assert report["quantized"] < 1e-3
    assert report["activations"] == 8  # input and output of small, act, large, act


def test_other_modules() -> None:
    torch.manual_seed(0)
    image = torch.randn(3, 2, 8, 8)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(144, 5), nn.Softmax(-1)
    )
    report = ptq_evaluate(net, [image], lambda m: float(m(image).max()), 4, 4)
    assert report["head"] == "4" and report["weights"] == 1
    sequence = torch.randn(2, 5, 6)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(6, 7, batch_first=True)
            self.out = nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.gru(x)[0])

    recurrent = Recurrent()
    report = ptq_evaluate(recurrent, [sequence], lambda m: float(m(sequence).sum()), 3, None)
    assert report["weights"] == 2 and report["quantized"] != report["full_precision"]
    assert recurrent(sequence).sum().item() == pytest.approx(report["full_precision"])
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
    )
    tower = nn.Sequential(encoder, nn.Linear(8, 3))
    x = torch.randn(2, 5, 8)
    coarse, fine = (ptq_evaluate(tower, [x], lambda m: float(m(x)[0, 0, 0]), bits, bits) for bits in (3, 16))
    exact = fine["full_precision"]
    assert coarse["activations"] > 10
    assert abs(fine["quantized"] - exact) < 1e-3 < abs(coarse["quantized"] - exact)


def test_an_error_restores_the_model() -> None:
    model, tokens, _ = model_and_data()
    parameters = list(model.parameters())
    calls: list[int] = []

    def fails(net: nn.Module) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no")
        return 0.0

    with pytest.raises(RuntimeError, match="no"):
        ptq_evaluate(model.train(), [tokens], fails)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def bad_calls() -> list[tuple[dict[str, Any], type[Exception], str]]:
    x = torch.zeros(2, 4)
    return [
        ({"model": "net"}, ArgumentTypeError, "model"),
        ({"eval_fn": 3}, ArgumentTypeError, "eval_fn"),
        ({"eval_fn": lambda m: "loss"}, ArgumentTypeError, "eval_fn"),
        ({"calib": x}, ArgumentTypeError, "calib"),
        ({"calib": []}, ArgumentValueError, "calib"),
        ({"calib": [1.0]}, ArgumentTypeError, "calib"),
        ({"w_bits": 1}, ArgumentValueError, "w_bits"),
        ({"a_bits": 33}, ArgumentValueError, "a_bits"),
        ({"a_bits": 8.0}, ArgumentTypeError, "a_bits"),
        ({"w_bits": True}, ArgumentTypeError, "w_bits"),
        ({"weight_range": "max"}, ArgumentValueError, "weight_range"),
        ({"percentile": 50.0}, ArgumentValueError, "percentile"),
        ({"percentile": 101.0}, ArgumentValueError, "percentile"),
        ({"momentum": 1.0}, ArgumentValueError, "momentum"),
        ({"exclude": "0"}, ArgumentTypeError, "exclude"),
        ({"exclude": ["9"]}, ArgumentValueError, "exclude"),
        ({"calib": [torch.full((2, 4), torch.nan)]}, StateError, "NaN"),
    ]


@pytest.mark.parametrize(("change", "error", "word"), bad_calls(), ids=lambda value: str(value)[:40])
def test_bad_input(change: dict[str, Any], error: type[Exception], word: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    arguments = {"model": net, "calib": [torch.zeros(2, 4)], "eval_fn": lambda m: 0.0, **change}
    with pytest.raises(error, match=word):
        ptq_evaluate(**arguments)


def test_a_module_that_calibration_did_not_reach() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(x) if len(x) == 1 else self.second(x))

    net, long = Branches(), torch.ones(3, 2)
    with pytest.raises(StateError, match="calib never reached the input of second"):
        ptq_evaluate(net, [torch.ones(1, 2)], lambda m: float(m(long).sum()))
    report = ptq_evaluate(net, [torch.ones(1, 2), long], lambda m: float(m(long).sum()))
    assert report["activations"] == 4
