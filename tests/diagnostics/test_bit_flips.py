"""Flipped bits: formats, counts, restoring, curves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from softgate._math.number_formats import number_format
from softgate.activations import ClippedReLU
from softgate.diagnostics import BitFlipInjector, ber_curve
from softgate.diagnostics.bit_flips import fault_bits, words_of

FORMATS = ("q15.16", "q3.4", "int8", "float32", "bfloat16", "float16")


def _model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), ClippedReLU(torch.ones(4, 6, 6)), nn.Flatten(), nn.Linear(144, 10),
        ClippedReLU(2.0),
    )  # fmt: skip


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", FORMATS)
def test_flipping_twice_is_nothing_and_once_is_one_bit(name: str) -> None:
    fmt = number_format(name)
    values = torch.randn(200, dtype=torch.float64)
    unit = fmt.unit(values)
    raw = fmt.encode(values, unit)
    for bit in range(fmt.bits):
        mask = torch.full_like(raw, 1 << bit)
        turned = fmt.flip(raw, mask)
        assert bool(((turned - raw).abs() == 1 << bit).all()) and torch.equal(fmt.flip(turned, mask), raw)
        assert bool((turned >= -(2 ** (fmt.bits - 1))).all()) and bool((turned < 2 ** (fmt.bits - 1)).all())
    torch.testing.assert_close(fmt.encode(fmt.decode(raw, unit), unit), raw)


def test_fixed_point_truncates_toward_zero_and_saturates() -> None:
    fmt = number_format("q15.16")
    values = torch.tensor([1.99999 / 2**16, -1.99999 / 2**16, 1e9, -1e9, math.nan, math.inf], dtype=torch.float64)
    assert fmt.encode(values, 2.0**-16).tolist() == [1, -1, 2**31 - 1, -(2**31), 0, 2**31 - 1]


@pytest.mark.parametrize("name", FORMATS)
def test_everything_is_put_back_also_after_an_error(name: str) -> None:
    model = _model()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = math.nan
    before = _state(model)
    with pytest.raises(KeyError), BitFlipInjector(model, 0.05, name) as faults:
        assert faults.flipped > 0 and not torch.equal(model[4].weight, before["4.weight"])
        raise KeyError
    for key, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(7.0), before[key].nan_to_num(7.0)), key


def test_what_can_have_faults() -> None:
    model = _model()
    faults = BitFlipInjector(model, 1.0, "float32")
    assert faults.names == ["0.weight", "0.bias", "2.bound", "4.weight", "4.bias"]
    before = _state(model)
    with faults:
        assert torch.equal(model[5].bound, before["5.bound"]) and torch.equal(model[1].weight, before["1.weight"])
        flipped = model[4].weight.detach().view(torch.int32)
        assert torch.equal(flipped, ~before["4.weight"].view(torch.int32))  # every bit
        assert faults.flipped == 32 * sum(before[n].numel() for n in faults.names)
        with pytest.raises(RuntimeError, match="already"):
            faults.__enter__()
    only = BitFlipInjector(model, 0.1, include=lambda name, _: name.startswith("1."))
    assert only.names == ["1.weight", "1.bias"]
    model[4].weight = model[4].weight  # a parameter in two places is one memory
    tied = nn.Sequential(model[4], model[4])
    assert BitFlipInjector(tied, 0.1).names == ["0.weight", "0.bias"]


def test_no_faults_is_the_model_in_the_format() -> None:
    model = _model().to(torch.bfloat16)
    before = _state(model)
    with BitFlipInjector(model, 0.0, "bfloat16"):
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    linear = nn.Linear(4, 4)
    expected = (linear.weight.detach() * 2**16).trunc() / 2**16
    with BitFlipInjector(linear, 0.0):
        assert torch.equal(linear.weight, expected)


def test_the_same_seed_flips_the_same_bits_whatever_else_there_is() -> None:
    small = nn.Sequential(nn.Linear(5, 5))
    large = nn.Sequential(small[0], nn.Linear(5, 7))
    seen = []
    for model, seed in ((small, 1), (large, 1), (small, 1), (small, 2)):
        with BitFlipInjector(model, 0.02, "float32", seed=seed):
            seen.append(small[0].weight.detach().clone().nan_to_num())
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[3])


@pytest.mark.parametrize("ber", [1e-4, 0.01, 0.4])
def test_as_many_as_the_rate_says(ber: float) -> None:
    bits, trials = 20_000, 60
    generator = torch.Generator().manual_seed(0)
    drawn = [fault_bits(bits, ber, "binomial", generator) for _ in range(trials)]
    counts = torch.tensor([float(len(d)) for d in drawn])
    spread = math.sqrt(bits * ber * (1 - ber))
    assert abs(float(counts.mean()) - bits * ber) < 4 * spread / math.sqrt(trials)
    assert 0.6 * spread < float(counts.std()) < 1.5 * spread
    for found in drawn:
        assert len(found.unique()) == len(found) and bool((found < bits).all())
    everywhere = torch.cat(drawn).double()
    assert abs(float(everywhere.mean()) / bits - 0.5) < 2 / math.sqrt(len(everywhere))


def test_the_count_of_the_toolbox() -> None:
    generator = torch.Generator().manual_seed(0)
    assert len(fault_bits(1000, 9e-4, "floor", generator)) == 0  # less than one bit per tensor is none
    found = fault_bits(1000, 0.5, "floor", generator)
    assert len(found) < 500 and (500 - len(found)) % 2 == 0  # two hits cancel
    where, mask = words_of(torch.tensor([0, 3, 8, 33]), 8)
    assert where.tolist() == [0, 1, 4] and mask.tolist() == [9, 1, 2]


def test_curves() -> None:
    model = _model()
    x = torch.randn(40, 1, 8, 8)
    with torch.no_grad():
        model[5].bound.fill_(50.0)
    data = [(x, model.eval()(x).argmax(1))]
    before = _state(model.train())
    curve = ber_curve(model, data, bers=(0.0, 1e-4, 0.2), trials=4, seed=5)
    assert curve.clean == curve.mean[0] == 1.0 and curve.std[0] == 0.0 and curve.mean[2] < 0.6
    assert len(curve.trials) == 3 and len(curve.trials[0]) == 4
    assert all(
        low <= mean <= high for (low, high), mean in zip(curve.quantiles, curve.mean, strict=True) if low == high
    )
    assert curve == ber_curve(model, data, bers=(0.0, 1e-4, 0.2), trials=4, seed=5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()) and model.training
    assert curve.table().count("\n") == 4 and len(curve.plot().lines) == 1
    assert ber_curve(model, [], bers=(0.1,), trials=2, measure=lambda m: 7.0).mean == (7.0,)


def test_rows_with_nan_count_as_wrong() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(math.nan)
    x = torch.ones(4, 2)
    assert ber_curve(model, [(x, torch.zeros(4, dtype=torch.long))], (0.0,), 1, "float32").clean == 0.0


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: BitFlipInjector("net", 0.1), TypeError, "model"),
        (lambda: BitFlipInjector(nn.Linear(2, 2), 1.5), ValueError, "ber"),
        (lambda: BitFlipInjector(nn.Linear(2, 2), "0.1"), TypeError, "ber"),
        (lambda: BitFlipInjector(nn.Linear(2, 2), 0.1, "int4"), ValueError, "q15.16"),
        (lambda: BitFlipInjector(nn.Linear(2, 2), 0.1, "q30.30"), ValueError, "32 bits"),
        (lambda: BitFlipInjector(nn.Linear(2, 2), 0.1, 8), TypeError, "fmt"),
        (lambda: BitFlipInjector(nn.Linear(2, 2), 0.1, seed=0.5), TypeError, "seed"),
        (lambda: BitFlipInjector(nn.Linear(2, 2), 0.1, count="poisson"), ValueError, "count"),
        (lambda: BitFlipInjector(nn.BatchNorm1d(2), 0.1), RuntimeError, "no parameter"),
        (lambda: ber_curve(nn.Linear(2, 2), [], (0.1,), 1), ValueError, "loader"),
        (lambda: ber_curve(nn.Linear(2, 2), [], (), 1), ValueError, "bers"),
        (lambda: ber_curve(nn.Linear(2, 2), [], (2.0,), 1), ValueError, "bers"),
        (lambda: ber_curve(nn.Linear(2, 2), [], (0.1,), 0), ValueError, "trials"),
    ],
    ids=["model", "rate", "text", "format", "wide", "number", "seed", "count", "nothing", "no data", "no rates",
         "high rate", "no trials"],
)  # fmt: skip
def test_bad_input(call, error, word) -> None:
    with pytest.raises(error, match=word):
        call()
