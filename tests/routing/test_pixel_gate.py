"""The pixel-wise gate and the hierarchy of gates."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from softgate.errors import StateError
from softgate.routing import HierarchicalMixture, PixelwiseGate, importance_loss, pixelwise_mixture


def test_groups_sum_to_one_and_are_softmaxes_of_their_own_logits() -> None:
    gate = PixelwiseGate(4, 6, hidden=(5,), groups=3)
    x = torch.randn(2, 4, 3, 7)
    weights = gate(x)
    assert weights.shape == (2, 3, 2, 3, 7)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 3, 3, 7))
    logits = gate.output(torch.relu(gate.hidden[0](x)))
    torch.testing.assert_close(weights[:, 1], logits[:, 2:4].softmax(1))


def test_a_dead_relu_on_the_logits_makes_a_gate_uniform_for_good() -> None:
    gate = PixelwiseGate(2, 2, hidden=(), relu_logits=True)
    torch.nn.init.constant_(gate.output.bias, -100.0)
    weights = gate(torch.randn(1, 2, 3, 3))
    assert bool((weights == 0.5).all())
    weights[:, :, 0].sum().backward()
    assert float(gate.output.bias.grad.abs().max()) == 0.0


def test_one_expert_is_the_identity_and_no_images_give_no_weights() -> None:
    gate = PixelwiseGate(2, 1, hidden=(3,))
    maps = torch.randn(2, 1, 4, 4)
    assert torch.equal(pixelwise_mixture(maps, gate(torch.randn(2, 2, 2, 2))[:, 0]), maps)
    assert gate(torch.randn(0, 2, 2, 2)).shape == (0, 1, 1, 2, 2)


def test_softmax_in_float32_for_16_bit_features_and_under_autocast() -> None:
    gate = PixelwiseGate(2, 3, hidden=(4,))
    x = torch.randn(1, 2, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = gate(x)
    narrow = copy.deepcopy(gate).bfloat16()(x.bfloat16())
    for weights in (under_autocast, narrow):
        assert weights.dtype is torch.float32
        torch.testing.assert_close(weights.sum(2), torch.ones(1, 1, 4, 4), rtol=0, atol=1e-6)
        torch.testing.assert_close(weights, gate(x), rtol=0, atol=2e-2)


def test_strict_refuses_what_is_not_finite() -> None:
    x = torch.full((1, 2, 3, 3), float("inf"))
    with pytest.raises(StateError, match="features"):
        PixelwiseGate(2, 3, strict=True)(x)
    assert bool(PixelwiseGate(2, 3)(x).isnan().any())


@pytest.mark.parametrize(
    ("arguments", "options", "error", "word"),
    [
        ((0, 2), {}, ValueError, "in_channels"),
        ((2, 0), {}, ValueError, "n_experts"),
        ((2, 3), {"groups": 2}, ValueError, "n_experts"),
        ((2, 3), {"hidden": 4}, TypeError, "hidden"),
        ((2, 3), {"hidden": (4, 0)}, ValueError, "hidden"),
        ((2, 3), {"relu_logits": 1}, TypeError, "relu_logits"),
        ((2, 3), {"strict": None}, TypeError, "strict"),
    ],
)
def test_bad_arguments_of_the_gate(arguments, options, error, word) -> None:
    with pytest.raises(error, match=word):
        PixelwiseGate(*arguments, **options)


def test_bad_features() -> None:
    gate = PixelwiseGate(2, 3)
    with pytest.raises(ValueError, match="features"):
        gate(torch.randn(1, 3, 4, 4))
    with pytest.raises(TypeError, match="features"):
        gate(torch.ones(1, 2, 4, 4, dtype=torch.int64))


def maps_of(batch: int = 2) -> list[Tensor]:
    return [torch.rand(batch, 1, 4 * s, 4 * s) for s in (4, 2, 1)]


def test_the_hierarchy_is_the_mixture_of_the_mixtures() -> None:
    merge = HierarchicalMixture(3, 6)
    x, maps = torch.randn(2, 6, 4, 4), maps_of()
    found = merge(maps, x)
    d = [m.repeat_interleave(16 // m.shape[-1], -2).repeat_interleave(16 // m.shape[-1], -1) for m in maps]
    pairs = [
        pixelwise_mixture(torch.cat((d[i], d[j]), 1), found.pair_weights[:, p])
        for p, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)])
    ]
    expected = [*d, *pairs, pixelwise_mixture(torch.cat(pairs, 1), found.weights)]
    for own, theirs in zip(found.maps, expected, strict=True):
        torch.testing.assert_close(own, theirs)
    assert found.final is found.maps[-1] and found.levels == (0, 0, 0, 1, 1, 1, 2)
    torch.testing.assert_close(found.importance, sum(importance_loss(found.pair_weights[:, p]) for p in range(3)))
    torch.testing.assert_close(found.attention, merge.mask(x).sigmoid())
    torch.testing.assert_close(found.weights, merge.top_gate(found.attention * x)[:, 0])


def test_every_parameter_learns_and_importance_reaches_the_first_gate() -> None:
    merge = HierarchicalMixture(3, 6)
    x = torch.randn(2, 6, 4, 4)
    found = merge(maps_of(), x)
    found.final.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in merge.pair_gate.parameters())
    assert all(p.grad is not None for p in merge.parameters())
    merge.zero_grad()
    merge(maps_of(), x).importance.backward()
    assert float(merge.pair_gate.output.weight.grad.abs().sum()) > 0 and merge.top_gate.output.weight.grad is None


def test_two_scales_without_a_mask_and_pairs_of_ones_own() -> None:
    x = torch.randn(1, 4, 2, 2)
    two = HierarchicalMixture(2, 4, mask=False)(maps_of(1)[:2], x)
    assert two.attention is None and torch.equal(two.final, two.maps[2])
    four = HierarchicalMixture(4, 4, pairs=[(0, 3), (1, 2)])([*maps_of(1), torch.rand(1, 1, 2, 2)], x)
    assert len(four.maps) == 7 and four.pair_weights.shape == (1, 2, 2, 2, 2)


def test_an_empty_batch() -> None:
    found = HierarchicalMixture(3, 4)(maps_of(0), torch.randn(0, 4, 4, 4))
    assert found.final.shape == (0, 1, 16, 16) and found.importance.item() == 0.0


@pytest.mark.parametrize(
    ("arguments", "options", "error", "word"),
    [
        ((1, 4), {}, ValueError, "n_scales"),
        ((3, 0), {}, ValueError, "feature_channels"),
        ((3, 4), {"pairs": "most"}, ValueError, "pairs"),
        ((3, 4), {"pairs": [(0, 3)]}, ValueError, "pairs"),
        ((3, 4), {"pairs": [(1, 1)]}, ValueError, "pairs"),
        ((3, 4), {"pairs": []}, ValueError, "pairs"),
        ((3, 4), {"pairs": [0, 1]}, TypeError, "pairs"),
        ((3, 4), {"mask": 1}, TypeError, "mask"),
    ],
)
def test_bad_arguments_of_the_hierarchy(arguments, options, error, word) -> None:
    with pytest.raises(error, match=word):
        HierarchicalMixture(*arguments, **options)


def test_bad_maps() -> None:
    merge, x = HierarchicalMixture(3, 4), torch.randn(2, 4, 4, 4)
    with pytest.raises(ValueError, match="maps"):
        merge(maps_of()[:2], x)
    with pytest.raises(ValueError, match=r"maps\[1\]"):
        merge(maps_of()[::-1], x)
    with pytest.raises(TypeError, match=r"maps\[2\]"):
        merge([*maps_of()[:2], torch.ones(2, 1, 4, 4, dtype=torch.int64)], x)


def test_two_experts_have_the_importance_of_the_formula() -> None:
    weights = torch.randn(3, 2, 4, 4, dtype=torch.float64).softmax(1)
    v = weights.sum((0, 2, 3))
    torch.testing.assert_close(importance_loss(weights), 2 * ((v[0] - v[1]) / v.sum()).square())
