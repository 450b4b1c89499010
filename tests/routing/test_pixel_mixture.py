"""Pixel-wise mixtures: what a weighted mean must keep, and what the banded kernel must not cost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from softgate import explain
from softgate.routing import _pixel_bands, pixelwise_mixture, resize_weights


def gate(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).softmax(1)


def test_equal_weights_average_and_one_hot_weights_choose() -> None:
    maps = torch.randn(2, 3, 6, 8)
    torch.testing.assert_close(pixelwise_mixture(maps, torch.full((2, 3, 3, 4), 1 / 3)), maps.mean(1, keepdim=True))
    for expert in range(3):
        one_hot = torch.zeros(2, 3, 2, 2)
        one_hot[:, expert] = 1.0
        assert torch.equal(pixelwise_mixture(maps, one_hot), maps[:, expert : expert + 1])


def test_between_the_extremes_and_blind_to_the_order_of_experts() -> None:
    maps, weights = torch.randn(2, 4, 8, 8, dtype=torch.float64), gate(2, 4, 2, 4)
    found = pixelwise_mixture(maps, weights)
    assert bool((found <= maps.amax(1, keepdim=True) + 1e-12).all())
    assert bool((found >= maps.amin(1, keepdim=True) - 1e-12).all())
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(pixelwise_mixture(maps[:, order], weights[:, order]), found)


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_equals_upsampling_the_weights_first(size: tuple[int, int], upsample: str) -> None:
    maps, weights = torch.randn(2, 3, 2, *size, dtype=torch.float64), gate(2, 3, 3, 4)
    full = resize_weights(weights, size, upsample)
    torch.testing.assert_close(full.sum(1), torch.ones(2, *size, dtype=torch.float64))
    if upsample == "bilinear":
        torch.testing.assert_close(full, F.interpolate(weights, size, mode="bilinear"))
    torch.testing.assert_close(
        pixelwise_mixture(maps, weights, upsample=upsample), torch.einsum("behw,bechw->bchw", full, maps)
    )


@pytest.mark.parametrize("ratio", [3, 7, 49])
def test_nearest_is_exact_for_every_whole_ratio(ratio: int) -> None:
    weights = gate(1, 2, 1, 5)
    full = resize_weights(weights, (ratio, 5 * ratio))
    assert torch.equal(full, weights.expand(1, 2, ratio, 5)[..., None].expand(1, 2, ratio, 5, ratio).flatten(-2))


@pytest.mark.parametrize("shape", [(3, 2, 1, 12, 10), (2, 3, 2, 12, 10)])
@pytest.mark.parametrize("band_bytes", [1, 400, 10**9])
def test_bands_of_every_size_give_the_same(shape: tuple[int, ...], band_bytes: int, monkeypatch) -> None:
    monkeypatch.setattr(_pixel_bands, "_BAND_BYTES", band_bytes)
    monkeypatch.setattr(_pixel_bands, "_FEW", 0)
    maps, weights = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True),
        gate(*shape[:2], 6, 5).requires_grad_(),
    )
    assert explain(pixelwise_mixture, maps, weights).chosen == "bands"
    expected = (resize_weights(weights, shape[-2:]).unsqueeze(2) * maps).sum(1)
    upstream = torch.randn_like(expected)
    found = pixelwise_mixture(maps, weights)
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad(found, (maps, weights), upstream)
    for own, theirs in zip(ours, torch.autograd.grad(expected, (maps, weights), upstream), strict=True):
        torch.testing.assert_close(own, theirs)


def test_the_kernel_steps_aside_where_it_does_not_pay() -> None:
    maps, weights = torch.randn(1, 2, 64, 64), torch.rand(1, 2, 8, 8)
    assert explain(pixelwise_mixture, maps, weights).chosen == "bands"
    assert explain(pixelwise_mixture, maps, weights, upsample="bilinear").chosen == "reference"
    assert explain(pixelwise_mixture, maps.bfloat16(), weights).chosen == "reference"
    assert explain(pixelwise_mixture, maps, weights[..., :7]).chosen == "reference"
    assert explain(pixelwise_mixture, maps[..., :32, :32], weights).chosen == "reference"


def test_only_what_needs_a_gradient_gets_one() -> None:
    maps, weights = torch.randn(1, 2, 64, 64), gate(1, 2, 32, 32).float().requires_grad_()
    pixelwise_mixture(maps, weights).sum().backward()
    torch.testing.assert_close(weights.grad, F.avg_pool2d(maps, 2) * 4)


def test_16_bit_maps_with_float32_weights() -> None:
    maps, weights = torch.randn(1, 3, 4, 4).bfloat16(), gate(1, 3, 2, 2).float()
    found = pixelwise_mixture(maps, weights)
    exact = pixelwise_mixture(maps.double(), weights.double())
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found, exact.bfloat16(), rtol=2**-8, atol=0)


def test_memory_is_that_of_the_result() -> None:
    maps, weights = torch.rand(1, 3, 256, 256), torch.rand(1, 3, 64, 64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        pixelwise_mixture(maps, weights)
    live = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    image = 4 * 256 * 256
    # the result and, for each expert, weights widened along rows of a quarter of its size; upsampled weights take 3
    assert image <= peak <= 2 * image
