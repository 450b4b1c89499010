"""Spatial spectra of known maps, the transfer function against an impulse, and energy counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from softgate.activations import LIF, lif
from softgate.diagnostics import energy_report, high_frequency_ratio, lif_transfer, relative_log_amplitude
from softgate.models import DepthwiseMixer, MaxFormer, MaxResNet, PoolMixer


def wave(cycles_down: int, cycles_across: int, size: int = 16) -> torch.Tensor:
    place = torch.arange(size, dtype=torch.float64) / size
    return torch.cos(2 * math.pi * (cycles_down * place.unsqueeze(1) + cycles_across * place))


def test_a_wave_lies_at_its_frequency() -> None:
    for down, across in ((1, 0), (0, 5), (3, 4), (4, 4)):
        frequency = math.hypot(down, across) / 16
        maps = wave(down, across)[None, None]
        assert math.isclose(float(high_frequency_ratio(maps, frequency - 0.01)), 1.0, abs_tol=1e-12)
        assert math.isclose(float(high_frequency_ratio(maps, frequency + 0.01)), 0.0, abs_tol=1e-12)
        amplitude = relative_log_amplitude(maps + 1.0)
        assert amplitude.shape == (9,) and int(amplitude[1:].argmax()) + 1 == round(16 * frequency)


def test_the_share_weighs_power_within_a_map_and_all_maps_alike() -> None:
    mixed = 2 * wave(1, 0) + wave(7, 0)
    assert math.isclose(float(high_frequency_ratio(mixed)), 0.2, abs_tol=1e-12)
    both = torch.stack((mixed, 100 * wave(7, 0)))
    assert math.isclose(float(high_frequency_ratio(both)), 0.6, abs_tol=1e-12)
    assert high_frequency_ratio(torch.zeros(3, 4, 4)) == 0


def test_white_noise_fills_the_square_evenly() -> None:
    noise = torch.randn(64, 32, 32)
    assert math.isclose(float(high_frequency_ratio(noise)), 1 - math.pi / 16, abs_tol=0.01)
    assert float(relative_log_amplitude(noise).abs().max()) < 0.1


def test_flat_maps_have_no_high_frequency() -> None:
    assert high_frequency_ratio(torch.ones(2, 8, 8)) == 0
    amplitude = relative_log_amplitude(torch.ones(8, 8))
    assert amplitude[0] == 0 and bool((amplitude[1:] < -6).all()) and bool(amplitude.isfinite().all())
    assert torch.equal(relative_log_amplitude(torch.zeros(8, 8)), torch.zeros(5))


def test_max_pooling_keeps_more_than_mean_pooling_and_both_less_than_the_input() -> None:
    spikes = (torch.rand(4, 2, 8, 16, 16) < 0.1).float()
    mean, largest, before = (
        high_frequency_ratio(m(spikes)) for m in (PoolMixer("avg"), PoolMixer("max"), nn.Identity())
    )
    assert mean < largest < before


@pytest.mark.parametrize("tau", [1.0, 1.25, 2.0, 10.0])
def test_the_transfer_function_is_that_of_an_impulse(tau: float) -> None:
    """Below threshold the membrane answers an impulse with gain · beta^t."""
    steps = 400
    impulse = torch.zeros(steps, 1, dtype=torch.float64)
    impulse[0] = 1.0
    membranes = []
    state = torch.zeros(1, dtype=torch.float64)
    for t in range(steps):
        _, state = lif(impulse[t : t + 1], tau, 1e6, state=state, return_state=True)
        membranes.append(state)
    w = 2 * math.pi * torch.arange(steps, dtype=torch.float64) / steps
    expected = torch.fft.fft(torch.cat(membranes))
    torch.testing.assert_close(lif_transfer(1 - 1 / tau, w), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(lif_transfer(1 - 1 / tau, w, 3), expected**3, rtol=1e-9, atol=1e-9)


def test_without_a_leak_the_gain_grows_towards_zero() -> None:
    w = torch.tensor([0.0, 0.1, math.pi], dtype=torch.float64)
    gain = lif_transfer(1.0, w).abs()
    assert gain[0].isinf()
    torch.testing.assert_close(gain[1:], 0.5 / torch.sin(w[1:] / 2))


@pytest.mark.parametrize("bad", [{"beta": 1.1}, {"beta": -0.1}, {"layers": 0}])
def test_bad_arguments_of_the_transfer_function(bad) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        lif_transfer(**{"beta": 0.5, "w": torch.zeros(1), **bad})


class Counted(nn.Module):
    """One dense layer for the image, one for spikes of both steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 3, 1, groups=1)
        nn.init.ones_(self.first.weight)
        self.neurons = LIF()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.expand(2, *x.shape)
        currents = self.first(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        return self.second(self.neurons(currents).flatten(0, 1))


def test_energy_by_hand() -> None:
    """1.5 fires in the second of two steps (charge 0.75, then 1.125); of 4 pixels one has it."""
    x = torch.zeros(3, 1, 2, 2)
    x[:, :, 0, 0] = 1.5
    model = Counted().train()
    found = energy_report(model, x)
    first, second = found.layers
    assert (first.name, first.steps, first.products, first.operations) == ("first", 1, 8.0, 8.0)
    assert math.isnan(first.firing_rate) and math.isclose(first.picojoules, 4.6 * 8)
    assert (second.steps, second.products, second.firing_rate) == (2, 24.0, 1 / 8)
    assert math.isclose(second.operations, 2 * 24 / 8) and math.isclose(second.picojoules, 0.9 * 6)
    assert (found.multiplications, found.synaptic_operations) == (8.0, 6.0)
    assert math.isclose(found.millijoules, 1e-9 * (4.6 * 8 + 0.9 * 6))
    assert model.training and not model.first._forward_hooks


def test_only_the_ends_of_a_max_former_multiply() -> None:
    model = MaxFormer(dim=16, depths=(1, 1, 1), steps=2)
    dense = [
        layer.name for layer in energy_report(model, torch.randn(2, 3, 8, 8)).layers if math.isnan(layer.firing_rate)
    ]
    assert dense[0] == "embeds.0.proj.conv" and set(dense) <= {"embeds.0.proj.conv", "head"}


def test_a_residual_network_multiplies_where_it_sees_membranes() -> None:
    model = MaxResNet(dims=(8, 16), depths=(1, 1), steps=2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 8.0)  # enough that neurons fire in the first block
    found = energy_report(model, torch.randn(3, 3, 8, 8))
    dense = {layer.name: layer.steps for layer in found.layers if math.isnan(layer.firing_rate)}
    assert dense.pop("stem.conv") == 1 and dense["blocks.0.skip.conv"] == 1 and dense["blocks.1.skip.conv"] == 2
    assert set(dense) <= {"blocks.0.skip.conv", "blocks.1.skip.conv", "head"}


def test_bad_batches_are_named() -> None:
    with pytest.raises(TypeError, match="model"):
        energy_report(lambda x: x, torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x must be a batch"):
        energy_report(DepthwiseMixer(4), torch.ones(0, 2, 4, 3, 3))
