"""Max-Former and Max-ResNet: sizes, shapes, what spikes make exact, laws of layers, clear errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from softgate.activations import LIF
from softgate.models import (
    DepthwiseMixer,
    Embed1Max,
    EmbedMax,
    EmbedMaxPlus,
    EmbedOrig,
    EmbedOrigImageNet,
    EmbedOrigLater,
    MaxFormer,
    MaxFormerConfig,
    MaxResNet,
    PoolMixer,
    SpikingMLP,
    SpikingSelfAttention,
    TokenQKAttention,
    max_former_10_768,
    max_former_cifar,
    max_former_event,
    max_resnet18,
    rename_released_max_former,
)
from softgate.models._spiking_convolution import ConvNorm

SMALL = {"dim": 16, "depths": (1, 1, 1), "steps": 2, "mlp_ratio": 2}


def randomized(model: nn.Module) -> nn.Module:
    """Running statistics and thresholds that let some neurons fire."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.3, 0.7)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 1.0, 2.0)
            nn.init.uniform_(module.bias, 0.0, 1.0)
    return model


def test_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        assert max_former_cifar().num_parameters() == 6_568_282
        assert max_former_cifar(num_classes=100).num_parameters() == 6_602_932
        assert round(max_former_10_768().num_parameters() / 1e6, 2) == 63.99
        assert max_resnet18().num_parameters() == 12_502_090


@pytest.mark.parametrize(
    ("embed", "in_dim", "stride"),
    [(EmbedOrig, 3, 1), (EmbedOrigImageNet, 3, 4), (EmbedMaxPlus, 2, 8), (EmbedMax, 8, 2), (Embed1Max, 8, 2),
     (EmbedOrigLater, 8, 2)],
)  # fmt: skip
def test_embeddings_divide_the_map(embed, in_dim: int, stride: int) -> None:
    layer = embed(in_dim, 16)
    assert layer(torch.randn(2, 3, in_dim, 16, 8)).shape == (2, 3, 16, 16 // stride, 8 // stride)
    assert layer.stride == stride
    if stride > 1:
        with pytest.raises(ValueError, match=f"height and width that {stride} divides"):
            layer(torch.randn(2, 3, in_dim, 17, 8))


def test_two_ways_of_a_stage_share_one_layer_of_neurons_or_have_two() -> None:
    neurons = {kind: sum(isinstance(m, LIF) for m in kind(8, 16).modules()) for kind in (EmbedOrig, EmbedMax)}
    assert neurons == {EmbedOrig: 2, EmbedMax: 2}  # two at the start; one at the start and one on the longer way


@pytest.mark.parametrize(
    "options",
    [{}, {"embeds": ("orig", "orig", "1max"), "mixers": ("max", "avg", "qk")}, {"mixers": ("dwc5", "ssa", "dwc7")},
     {"conv_init": "trunc_normal", "steps": 1}],
    ids=lambda o: "-".join(o) or "default",
)  # fmt: skip
def test_every_part_trains(options) -> None:
    torch.manual_seed(1)
    model = MaxFormer(**{**SMALL, **options})
    logits = model(2 * torch.randn(4, 3, 8, 8))
    assert logits.shape == (4, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_events_bring_their_own_steps() -> None:
    model = max_former_event(dim=32, heads=4, num_classes=3).eval()
    assert model(torch.randn(2, 5, 2, 16, 16)).shape == (2, 3)


def test_an_image_is_the_same_in_every_step() -> None:
    model = randomized(MaxFormer(**SMALL)).eval()
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(model(images), model(images.unsqueeze(1).expand(3, 2, 3, 8, 8)))


@pytest.mark.parametrize(
    "model", [MaxFormer(**SMALL), MaxResNet(dims=(8, 16), depths=(1, 1), steps=2)], ids=["former", "resnet"]
)
def test_images_of_a_batch_do_not_meet_in_eval_mode(model) -> None:
    model = randomized(model).double().eval()
    images = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone)
    assert float(alone.detach().std(0).min()) > 0


def test_attention_of_spikes_is_exact_in_any_order_and_thresholds_its_eighths() -> None:
    layer = SpikingSelfAttention(32, 4)
    q, k, v = ((torch.rand(2, 3, 4, 8, 50) < 0.3).float() for _ in range(3))
    products: list[torch.Tensor] = []
    layer.attention_neurons.register_forward_pre_hook(lambda _, args: products.append(args[0]))
    layer.mix(q, k, v)
    rows = (q.mT @ k) @ v.mT  # tokens by tokens first
    assert torch.equal(products[0], 0.125 * rows.mT)
    assert torch.equal(8 * products[0], (8 * products[0]).round())


@pytest.mark.parametrize("kind", [SpikingSelfAttention, TokenQKAttention])
def test_attention_does_not_know_places(kind) -> None:
    layer = randomized(kind(16, 2)).double().eval()
    x = 2 * torch.randn(3, 2, 16, 5, 4, dtype=torch.float64)
    order = torch.randperm(20)

    def shuffled(maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(3)[..., order].unflatten(-1, (5, 4))

    y = layer(x)
    torch.testing.assert_close(layer(shuffled(x)), shuffled(y))
    assert float((y - x).detach().abs().mean()) > 0.01


def test_tokens_pass_by_their_queries() -> None:
    layer = TokenQKAttention(6, 2)
    q, k = torch.zeros(1, 1, 2, 3, 4), torch.ones(1, 1, 2, 3, 4)
    q[..., 0, :, 1] = 1.0  # of token 1 all three queries of the first head
    assert layer.mix(q, k).squeeze().sum(1).tolist() == [[0, 3, 0, 0], [0, 0, 0, 0]]


def test_a_narrow_feed_forward_layer_has_a_residual_in_its_first_half() -> None:
    layer = SpikingMLP(4, 4).eval()
    nn.init.zeros_(layer.fc1.conv.weight)
    nn.init.zeros_(layer.fc1.conv.bias)
    seen: list[torch.Tensor] = []
    layer.fc2_neurons.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.randn(2, 1, 4, 3, 3)
    layer(x)
    torch.testing.assert_close(seen[0], x)


def test_pools_have_no_residual_and_means_leave_the_border_out() -> None:
    x = torch.ones(1, 1, 1, 4, 4)
    assert torch.equal(PoolMixer("avg")(x), x) and torch.equal(PoolMixer("max")(x), x)
    spot = torch.zeros(1, 1, 1, 3, 3)
    spot[..., 0, 0] = 4.0
    assert PoolMixer("avg")(spot)[0, 0, 0, 0].tolist() == [1.0, pytest.approx(4 / 6), 0.0]
    assert PoolMixer("max")(spot).sum() == 16


def test_batch_norm_folds_into_convolutions() -> None:
    model = randomized(MaxFormer(**SMALL)).double().eval()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = model(images)
    for part in [m for m in model.modules() if isinstance(m, ConvNorm)]:
        part.conv, part.norm = fuse_conv_bn_eval(part.conv, part.norm), nn.Identity()  # type: ignore[assignment]
    torch.testing.assert_close(model(images), before)


@pytest.mark.parametrize("halving", ["max", "stride"])
def test_the_residual_network_halves_its_maps(halving: str) -> None:
    model = MaxResNet(dims=(8, 16, 32), depths=(1, 2, 1), halving=halving, steps=2)
    shapes: list[tuple[int, ...]] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _a, out: shapes.append(tuple(out.shape[2:])))
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    assert shapes == [(8, 16, 16), (16, 8, 8), (16, 8, 8), (32, 4, 4)]
    assert model.blocks[1].skip is not None and model.blocks[2].skip is None


def test_released_names() -> None:
    state = {
        "module.patch_embed1.embed1.embed_bn.weight": torch.ones(1),
        "module.stage2.0.mixer.conv.bias": torch.ones(1),
    }
    names = {"embeds.0.embed1.embed.norm.weight", "stages.1.0.mixer.conv.conv.bias"}
    assert set(rename_released_max_former({"state_dict": state, "epoch": 3})) == names
    assert names <= set(MaxFormer(**SMALL).state_dict())
    with pytest.raises(TypeError, match="state"):
        rename_released_max_former([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "word"),
    [({"dim": 18}, "dim"), ({"embeds": ("max", "max", "max")}, "embeds"), ({"mixers": ("ssa",)}, "mixers"),
     ({"mixers": ("dwc4", "ssa", "ssa")}, "mixers"), ({"depths": [1, 1, 1]}, "depths"),
     ({"depths": (1, 0, 1)}, "depths"), ({"heads": 3}, "dim"), ({"steps": 0}, "steps"),
     ({"conv_init": "ones"}, "conv_init")],
)  # fmt: skip
def test_bad_configurations_are_named(options, word: str) -> None:
    with pytest.raises((ValueError, TypeError), match=word):
        MaxFormer(MaxFormerConfig(**{**SMALL, **options}))


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (3, 8, 8), (2, 3, 8, 9), (2, 3, 6, 8), (2, 0, 3, 8, 8), (2, 3, 0, 8)])
def test_bad_images_are_named(shape) -> None:
    for model in (MaxFormer(**SMALL), MaxResNet(dims=(8, 8, 8), depths=(1, 1, 1))):
        with pytest.raises(ValueError, match="images must have"):
            model(torch.zeros(shape))
    with pytest.raises(TypeError, match="images"):
        model(torch.zeros(2, 3, 8, 8, dtype=torch.long))


@pytest.mark.parametrize("layer", [DepthwiseMixer(4), SpikingMLP(4), SpikingSelfAttention(4, 2), EmbedMax(4, 8)])
def test_layers_ask_for_time_first(layer) -> None:
    with pytest.raises(ValueError, match="time comes first"):
        layer(torch.zeros(2, 4, 6, 6))


@pytest.mark.parametrize(
    ("make", "word"),
    [(lambda: DepthwiseMixer(4, 2), "kernel"), (lambda: PoolMixer("min"), "kind"), (lambda: EmbedOrig(3, 7), "dim"),
     (lambda: SpikingSelfAttention(9, 2), "dim"), (lambda: SpikingSelfAttention(8, 2, scale=0.0), "scale"),
     (lambda: MaxResNet(halving="mean"), "halving"), (lambda: MaxResNet(dims=(8,), depths=(1, 1)), "depths")],
)  # fmt: skip
def test_bad_sizes_of_layers_are_named(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()
