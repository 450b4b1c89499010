"""One dynamic convolution: what it masks, where gradients go, and that skipping filters changes nothing."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from filter_nets import lived_in, plain
from torch import nn

from softgate.dynamic import DynamicConv2d, FTWTLoss, MaskPredictor, mask_prediction_loss, prune_dynamic
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError


def _layer(**options) -> DynamicConv2d:
    layer = DynamicConv2d(nn.Conv2d(6, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), r=0.8, **options)
    return lived_in(layer)


def test_masks_are_the_predictors_and_targets_those_of_the_output() -> None:
    layer, x = _layer(), torch.randn(5, 6, 7, 7)
    dense = layer.act(layer.bn(layer.conv(x)))
    out, last = layer(x), layer.last
    assert torch.equal(last.mask, layer.predictor(x) > 0)
    assert 0 < int(last.mask.sum()) < last.mask.numel()
    torch.testing.assert_close(out, dense * last.mask[:, :, None, None])
    assert torch.equal(last.target, layer.targets(dense.abs().amax((2, 3))))
    layer.masking = "target"
    torch.testing.assert_close(layer(x), dense * last.target[:, :, None, None])
    layer.masking = "none"
    torch.testing.assert_close(layer(x), dense)


def test_keeping_all_that_fires_changes_nothing() -> None:
    layer = DynamicConv2d(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), r=1.0).eval()
    layer.masking = "target"
    x = torch.randn(4, 3, 9, 9)
    assert torch.equal(layer(x), layer.dense(x))


@pytest.mark.parametrize("mode", ["decoupled", "joint"])
def test_where_gradients_go(mode) -> None:
    layer, x = _layer(mode=mode).double(), torch.randn(3, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    network = [x, layer.conv.weight, layer.bn.weight]
    predictor = list(layer.predictor.parameters())
    loss = mask_prediction_loss(layer.last.logits, layer.last.target)
    found = torch.autograd.grad(loss, [*network, *predictor], allow_unused=True, retain_graph=True)
    assert found[1] is None and found[2] is None  # the layer's own weights are no part of its prediction
    assert (found[0] is None) == (mode == "decoupled")
    assert all(float(grad.abs().sum()) > 0 for grad in found[3:])
    task = torch.autograd.grad(out.square().mean(), [*network, *predictor], allow_unused=True)
    assert all(float(grad.abs().sum()) > 0 for grad in task[:3])
    assert all(grad is None for grad in task[3:])
    if mode == "joint":
        step = torch.zeros_like(x)
        step[0, 2] = 1e-6

        def shifted(sign: float) -> float:
            return float(mask_prediction_loss(layer.predictor(x.detach() + sign * step), layer.last.target).detach())

        numeric = (shifted(1.0) - shifted(-1.0)) / 2e-6
        assert numeric == pytest.approx(float((found[0] * step / 1e-6).sum()), rel=1e-5)


@pytest.mark.parametrize("plan", ["native", "both", "rows", "dense"])
@pytest.mark.parametrize("options", [{}, {"block_size": 4}, {"min_keep": 3, "mode": "joint"}])
def test_skipping_gives_the_same(plan, options) -> None:
    layer, x = _layer(**options), torch.randn(4, 6, 7, 5)
    torch.testing.assert_close(layer.infer(x, plan), layer(x), rtol=1e-5, atol=1e-5)
    assert layer.infer(x[:0], plan).shape == (0, 32, 7, 5)


def test_blocks_are_switched_together() -> None:
    layer = _layer(block_size=8)
    layer(torch.randn(4, 6, 7, 7))
    assert layer.last.logits.shape == (4, 4)
    assert torch.equal(layer.last.mask.unflatten(1, (4, 8)).all(-1), layer.last.mask.unflatten(1, (4, 8)).any(-1))


def test_all_filters_may_go() -> None:
    layer = _layer()
    nn.init.constant_(layer.predictor.linear.bias, -1e3)
    x = torch.randn(2, 6, 4, 4)
    for out in (layer(x), layer.infer(x), layer.infer(x, "rows")):
        assert out.shape == (2, 32, 4, 4) and not out.any()


def test_folded_weights_follow_the_layer() -> None:
    layer, x = _layer(), torch.randn(2, 6, 4, 4)
    before = layer.infer(x)
    with torch.no_grad():
        layer.bn.running_var.mul_(4.0)
        layer.conv.weight.add_(0.1)
    assert not torch.allclose(layer.infer(x), before)
    torch.testing.assert_close(layer.infer(x), layer(x), rtol=1e-5, atol=1e-5)
    layer.train()
    with pytest.raises(StateError, match="eval mode"):
        layer.infer(x)


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv2d(4, 1, 3), (2, 4, 5, 5)),
        (nn.Conv2d(4, 8, 1), (2, 4, 1, 1)),
        (nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), (3, 8, 6, 6)),
        (nn.Conv2d(4, 40, (3, 1), padding="same", dilation=2), (2, 4, 7, 7)),
    ],
)
def test_all_kinds_of_convolutions(conv, shape) -> None:
    layer, x = DynamicConv2d(conv, act=nn.SiLU()).eval(), torch.randn(shape)
    torch.testing.assert_close(layer.infer(x), layer(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.infer(x, "rows"), layer(x), rtol=1e-5, atol=1e-5)


def test_an_activation_that_does_not_keep_zero() -> None:
    layer, x = DynamicConv2d(nn.Conv2d(4, 40, 3), act=nn.Sigmoid()).eval(), torch.randn(3, 4, 6, 6)
    torch.testing.assert_close(layer.infer(x), layer(x), rtol=1e-5, atol=1e-5)


def test_sixteen_bits_and_channels_last() -> None:
    layer = _layer().bfloat16()
    x = torch.randn(2, 6, 6, 6).bfloat16()
    out = layer(x)
    assert out.dtype is torch.bfloat16 and layer.last.scores.dtype is torch.float32
    torch.testing.assert_close(layer.infer(x), out, rtol=0.05, atol=0.05)
    layer = _layer()
    x = torch.randn(2, 6, 6, 6)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer.infer(last), layer(x), rtol=1e-5, atol=1e-5)


def test_what_is_not_a_number_is_kept() -> None:
    layer, x = _layer(), torch.randn(2, 6, 4, 4)
    x[0, 0, 0, 0] = float("nan")
    out = layer(x)
    assert layer.last.mask[0].all() and layer.last.target[0].all()
    assert out[0].isnan().any() and not out[1].isnan().any()


def test_copies_and_pickles_forget_the_last_batch() -> None:
    layer = _layer()
    x = torch.randn(2, 6, 4, 4)
    out = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.last is None
        assert torch.equal(other(x), out)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: DynamicConv2d(nn.Conv2d(8, 8, 3, groups=2)), "groups"),
        (lambda: DynamicConv2d(nn.Conv2d(8, 16, 3, groups=8)), "groups"),
        (lambda: DynamicConv2d(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")), "padding_mode"),
        (lambda: DynamicConv2d(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(4)), "num_features"),
        (lambda: DynamicConv2d(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)), "running"),
        (lambda: DynamicConv2d(nn.Conv2d(8, 8, 3), predictor=MaskPredictor(8, 4)), "predictor"),
        (lambda: DynamicConv2d(nn.Conv2d(8, 8, 3), block_size=3), "block_size"),
        (lambda: DynamicConv2d(nn.Conv2d(8, 8, 3), r=1.01), "r must"),
        (lambda: DynamicConv2d(nn.Conv2d(8, 8, 3), r=1.0, target="uniform"), "r must"),
        (lambda: DynamicConv2d(nn.Conv2d(8, 8, 3), mode="both"), "mode"),
        (lambda: DynamicConv2d(nn.Conv2d(8, 8, 3))(torch.zeros(8, 4, 4)), "x must"),
        (lambda: DynamicConv2d(nn.Conv2d(8, 8, 3))(torch.zeros(1, 4, 4, 4)), "x must"),
        (lambda: MaskPredictor(8, 8, "median"), "pool"),
        (lambda: MaskPredictor(8, 8, embed_norm="batch"), "embed_norm"),
        (lambda: MaskPredictor(8, 8)(torch.zeros(1, 8, 0, 4)), "x must"),
        (lambda: FTWTLoss(-1.0), "w must"),
    ],
)
def test_bad_arguments(make, word) -> None:
    with pytest.raises(ArgumentValueError, match=word):
        make()


def test_bad_types() -> None:
    with pytest.raises(ArgumentTypeError, match="conv"):
        DynamicConv2d(nn.Linear(3, 4))
    with pytest.raises(ArgumentTypeError, match="bn"):
        DynamicConv2d(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
    with pytest.raises(StateError, match="model"):
        FTWTLoss()(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), nn.Linear(2, 2))


def test_predictors() -> None:
    x = torch.randn(3, 4, 6, 6)
    for pool, expected in (("max", x.amax((2, 3))), ("avg", x.mean((2, 3)))):
        head = MaskPredictor(4, 7, pool)
        torch.testing.assert_close(head(x), head.linear(expected))
        head = MaskPredictor(4, 7, pool, "softmax")
        torch.testing.assert_close(head(x), head.linear(expected.softmax(1)))
        head = MaskPredictor(4, 7, pool, "layernorm")
        centred = expected - expected.mean(1, keepdim=True)
        wanted = head.linear(centred / (expected.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt())
        torch.testing.assert_close(head(x), wanted)
    grid = MaskPredictor(4, 7, target_dim=36)
    assert grid.side == 3 and grid.linear.in_features == 36 and grid.multiply_adds == 252
    torch.testing.assert_close(grid(x), grid.linear(x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1)).flatten(1)))
    assert MaskPredictor(4, 7, target_dim=1).side == 1


def test_the_loss_adds_layers_to_the_task() -> None:
    model = prune_dynamic(plain(), 0.9, torch.zeros(1, 3, 8, 8)).train()
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    logits = model(x)
    masks = [mask_prediction_loss(layer.last.logits, layer.last.target) for layer in model.layers.values()]
    task = nn.functional.cross_entropy(logits, y)
    torch.testing.assert_close(FTWTLoss(0.5)(logits, y, model), task + 0.5 * sum(masks) / 3)
    torch.testing.assert_close(FTWTLoss(0.0)(logits, y, model), task)
