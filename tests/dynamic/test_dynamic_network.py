"""Whole dynamic networks: what is taken, that compact inference is the masked network, statistics and costs counted."""

from __future__ import annotations

import copy

import pytest
import torch
from filter_nets import lived_in, plain, residual, separable
from torch import Tensor, nn

from softgate.dynamic import DynamicConv2d, DynamicNetwork, choose_r, estimate_flops, prune_dynamic
from softgate.dynamic.filter_estimate import FiringTable
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError

NETS = {"plain": plain, "residual": residual, "separable": separable}


def _pruned(net: nn.Module, r: float = 0.8, **options) -> DynamicNetwork:
    return prune_dynamic(lived_in(net), r, torch.zeros(1, 3, 12, 12), **options).eval()


def _images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 12, 12)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("plan", ["native", "both", "rows", "dense", "auto"])
def test_compact_inference_is_the_masked_network(name, plan) -> None:
    model, x = _pruned(NETS[name]()), _images()
    out = model(x)
    shares = model.dynamic_stats().active.values()
    assert any(0.1 < share < 0.9 for share in shares)
    torch.testing.assert_close(model.infer(x, plan), out, rtol=1e-5, atol=1e-5 * float(out.detach().abs().max()))
    assert model.infer(x[:0], plan).shape == (0, 5)


@pytest.mark.parametrize("name", NETS)
def test_without_masks_it_is_the_dense_network(name) -> None:
    net = lived_in(NETS[name]())
    x = _images()
    expected = net(x)
    model = prune_dynamic(net, 0.9, x[:1]).eval()
    with model.masking("none"):
        torch.testing.assert_close(model(x), expected)
    assert {layer.masking for layer in model.layers.values()} == {"predicted"}
    torch.testing.assert_close(net(x), expected)  # and the network itself is left alone


def test_what_is_taken() -> None:
    names = ["0", "3.conv1", "3.conv2", "4.conv1", "4.conv2"]
    model = _pruned(residual())
    assert list(model.layers) == names
    assert [layer.act is None for layer in model.layers.values()] == [False, False, True, False, True]
    assert all(layer.bn is not None for layer in model.layers.values())
    assert list(_pruned(residual(), include=["4.conv1", "3.downsample.0"]).layers) == ["3.downsample.0", "4.conv1"]
    deep = _pruned(residual(), include=lambda name, conv: conv.out_channels > 16)
    assert sorted(deep.layers) == ["4.conv1", "4.conv2", "4.downsample.0"]
    assert model.wiring.sources == {
        "0": None, "3.conv1": "0", "3.conv2": "3.conv1", "4.conv1": None, "4.conv2": "4.conv1",
    }  # fmt: skip
    assert _pruned(plain()).wiring.sources == {"0": None, "3": "0", "7": "3"}


def test_all_filters_of_a_layer_may_go() -> None:
    for make in NETS.values():
        model, x = _pruned(make()), _images(2)
        for layer in list(model.layers.values())[1:3]:
            nn.init.constant_(layer.predictor.linear.bias, -1e4)
        for plan in ("both", "rows", "dense"):
            torch.testing.assert_close(model.infer(x, plan), model(x), rtol=1e-5, atol=1e-5)
        with pytest.warns(UserWarning, match="no filter ran"):
            silent = model.dynamic_stats().silent
        assert list(silent) == list(model.layers)[1:3] and set(silent.values()) == {6}


@pytest.mark.parametrize("name", NETS)
def test_statistics_and_costs_by_brute_force(name) -> None:
    model, x = _pruned(NETS[name]()), _images(6)
    masks: dict[str, list[Tensor]] = {key: [] for key in model.layers}
    agreed, spent = [], 0.0
    for sample in x.split(1):
        model(sample)
        for key, layer in model.layers.items():
            masks[key].append(layer.last.mask[0])
            agreed.append(layer.last.mask == layer.last.target)
        for key, layer in model.layers.items():
            source, conv = model.wiring.sources[key], layer.conv
            inputs = conv.in_channels if source is None else int(masks[source][-1].sum())
            per_filter = (1 if conv.groups > 1 else inputs) * conv.weight[0, 0].numel() * model.wiring.places[key]
            spent += int(masks[key][-1].sum()) * per_filter / len(x)
    stats = model.dynamic_stats()
    assert stats.samples == 6 and stats.not_finite == 0
    assert float(stats.costs.active.sum()) == pytest.approx(spent)
    predictors = sum(layer.predictor.linear.weight.numel() for layer in model.layers.values())
    assert int(stats.costs.predictors.sum()) == predictors
    assert stats.flops == pytest.approx(spent + predictors + stats.costs.rest)
    assert stats.reduction == pytest.approx(1 - stats.flops / stats.costs.total)
    assert stats.mask_accuracy == pytest.approx(float(torch.cat([a.flatten() for a in agreed]).float().mean()))
    for key, found in masks.items():
        assert stats.active[key] == pytest.approx(float(torch.stack(found).float().mean()))
    stacked = torch.cat([torch.stack(found) for found in masks.values()], 1)
    assert stats.dynamic_fraction == pytest.approx(float((stacked.any(0) & ~stacked.all(0)).float().mean()))
    model.eval()
    with pytest.raises(StateError, match="statistics"):
        model.dynamic_stats()


def test_costs_of_the_dense_network_are_counted() -> None:
    model = _pruned(separable())
    counted = sum(layer.conv.weight.numel() * model.wiring.places[key] for key, layer in model.layers.items())
    head = 32 * 5
    assert model.wiring.total == counted + head
    assert model.wiring.places["0"] == 144 and model.wiring.places["9"] == 36


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("r", [0.5, 0.9, 1.0])
def test_the_estimate_counts_targets_on_the_dense_network(name, r) -> None:
    net, x = lived_in(NETS[name]()), _images(7)
    estimate = estimate_flops(net, x, r)
    model = prune_dynamic(net, r, x[:1]).eval()
    with model.masking("none"):
        model(x)
    active = {key: layer.last.target.sum(1) for key, layer in model.layers.items()}
    expected = model.wiring.costs(model.wiring.sample_costs(active))
    torch.testing.assert_close(estimate.active, expected.active)
    assert estimate.reduction == pytest.approx(expected.reduction)
    assert list(estimate.layer_reduction) == list(model.layers)
    batches = [(part, torch.zeros(len(part))) for part in x.split(3)]
    assert estimate_flops(model, batches, r).reduction == pytest.approx(estimate.reduction)
    assert model.counter.samples == 7  # of the call above: an estimate is no statistic


def test_a_budget_is_met() -> None:
    net, x = lived_in(plain()), _images(16)
    found = [choose_r(net, x, target) for target in (0.3, 0.5, 0.7)]
    assert found == sorted(found, reverse=True)
    for target, r in zip((0.3, 0.5, 0.7), found, strict=True):
        assert estimate_flops(net, x, r).reduction >= target
        assert estimate_flops(net, x, r + 1e-4).reduction < target
    with pytest.raises(ArgumentValueError, match="target_reduction"):
        choose_r(net, x, 0.9999)


def test_a_table_of_firing_counts_what_masks_keep() -> None:
    net, x = lived_in(plain()), _images(5)
    x[2] = 0.0
    table = FiringTable(prune_dynamic(net, 0.7, x[:1], min_keep=3), x)
    for r in (0.05, 0.7, 1.0):
        model = prune_dynamic(net, r, x[:1], min_keep=3).eval()
        with model.masking("none"):
            model(x)
        for key, layer in model.layers.items():
            assert torch.equal(table.active(r)[key], layer.last.target.sum(1))


def test_copies_train_and_infer_by_themselves() -> None:
    model, x = _pruned(plain()), _images(2)
    other = copy.deepcopy(model)
    assert torch.equal(other(x), model(x))
    with torch.no_grad():
        for layer in other.layers.values():
            layer.conv.weight.mul_(2.0)
    assert not torch.allclose(other.infer(x), model.infer(x))
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model.infer(x), other.infer(x))


def test_bad_arguments() -> None:
    example = torch.zeros(1, 3, 12, 12)
    for make, word in (
        (lambda: prune_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(432, 2)), 0.9, example), "convolution"),
        (lambda: prune_dynamic(plain(), 0.0, example), "r must"),
        (lambda: prune_dynamic(plain(), 0.9, example[0]), "example"),
        (lambda: prune_dynamic(plain(), 0.9, example[:0]), "example"),
        (lambda: prune_dynamic(plain(), 0.9, example, include="all"), "include"),
        (lambda: prune_dynamic(plain(), 0.9, example, include=["0", "11"]), "include"),
        (lambda: prune_dynamic(plain(), 0.9, example, head={"pool": "min"}), "pool"),
        (lambda: prune_dynamic(_Untraceable(), 0.9, example), "traceable"),
        (lambda: _pruned(plain()).infer(example, "sparse"), "plan"),
        (lambda: _pruned(plain()).tune(example[:0]), "x must"),
        (lambda: estimate_flops(plain(), example[:0], 0.9), "loader"),
        (lambda: estimate_flops(plain(), example, 1.5), "r must"),
    ):
        with pytest.raises(ArgumentValueError, match=word):
            make()
    with pytest.raises(ArgumentTypeError, match="loader"):
        estimate_flops(plain(), 3, 0.9)
    with pytest.raises(ArgumentTypeError, match="model"):
        prune_dynamic("resnet", 0.9, example)
    with pytest.raises(StateError, match="eval mode"):
        _pruned(plain()).train().infer(example)


class _Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_heads_of_ones_own() -> None:
    model = _pruned(plain(), head=lambda c_in, c_out: _Head(c_in, c_out))
    x = _images()
    torch.testing.assert_close(model.infer(x), model(x), rtol=1e-5, atol=1e-5)
    model = _pruned(plain(), head={"pool": "avg", "embed_norm": "softmax", "target_dim": 64})
    torch.testing.assert_close(model.infer(x), model(x), rtol=1e-5, atol=1e-5)


class _Head(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x[:, :, ::4, ::4].mean((2, 3), keepdim=True)).flatten(1)


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("timm", "resnet18"), ("timm", "mobilenetv2_050"),
        ("torchvision", "vgg11_bn"), ("torchvision", "resnet18"), ("torchvision", "mobilenet_v2"),
    ],
)  # fmt: skip
def test_networks_of_the_libraries(library, name) -> None:
    if library == "timm":
        net = pytest.importorskip("timm").create_model(name, num_classes=7)
    else:
        net = getattr(pytest.importorskip("torchvision.models"), name)(num_classes=7)
    x = torch.randn(2, 3, 32, 32)
    net = lived_in(net)
    model = prune_dynamic(net, 0.8, x[:1]).eval()
    with model.masking("none"):
        torch.testing.assert_close(model(x), net(x), rtol=1e-4, atol=1e-4)
    out = model(x)
    scale = float(out.detach().abs().max())
    torch.testing.assert_close(model.infer(x, "both"), out, rtol=1e-4, atol=1e-5 * max(1.0, scale))
    convs = sum(type(module) is nn.Conv2d for module in net.modules())
    shortcuts = sum("downsample.0" in key and key.endswith("weight") for key in net.state_dict())
    assert len(model.layers) == convs - shortcuts
    assert all(isinstance(layer, DynamicConv2d) and layer.bn is not None for layer in model.layers.values())
