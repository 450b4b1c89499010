"""HMoDE: shapes, padding, counts, its loss, and the backbones it takes."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from softgate.integrations import torchvision_cpu
from softgate.models import HMoDE, VGGPyramid, density_experts_loss
from softgate.models.hmode import make_backbone

SMALL = ((4, 4, 8, 8, 8), (1, 1, 1, 1, 1))


def small(**options) -> HMoDE:
    return HMoDE(VGGPyramid(1, *SMALL), head_width=4, init_std=None, **options)


def test_seven_maps_of_the_size_of_the_image() -> None:
    model = small()
    found = model(torch.rand(2, 1, 32, 48))
    assert [tuple(m.shape) for m in found.maps] == 7 * [(2, 1, 32, 48)]
    assert found.pair_weights.shape == (2, 3, 2, 2, 3) and found.attention.shape == (2, 1, 32, 48)
    blocks = found.final.unflatten(-1, (12, 4)).unflatten(-3, (8, 4))
    assert bool((blocks == blocks[..., :1, :, :1]).all()), "maps of stride 4 are repeated"
    torch.testing.assert_close(model.count(found), found.final.sum((1, 2, 3)) / 100)


def test_sizes_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        model = HMoDE()
    widths = [layer.out_channels for layer in model.mixture.top_gate.hidden]
    assert widths == [1024, 2048, 1024, 512, 256] and model.mixture.pair_gate.hidden[0].out_channels == 256
    assert [layer.out_channels for layer in model.mixture.mask.hidden] == [256, 128]
    assert model.experts.widths == (128, 256, 512) and model.stride == 16
    assert [c.in_channels for c in (model.experts.coarse[0], model.experts.middle[0], model.experts.fine[0])] == [
        512, 1024, 512,
    ]  # fmt: skip


def test_the_papers_initial_weights() -> None:
    model = HMoDE(VGGPyramid(1, *SMALL))
    layer = model.mixture.top_gate.hidden[1]
    assert float(layer.weight.std().detach()) == pytest.approx(0.01, rel=0.2)
    assert float(layer.bias.detach().abs().max()) == 0.0
    assert float(model.experts.backbone.blocks[0][0].weight.std().detach()) > 0.1


def test_no_map_of_a_small_network_starts_dead() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        assert all(float(m.detach().sum()) > 0 for m in small()(torch.rand(2, 1, 32, 32)).maps)


def test_other_sizes_are_mirrored_and_cropped() -> None:
    model = small().eval()
    images = torch.rand(1, 1, 40, 37)
    mirrored = torch.nn.functional.pad(images, (0, 11, 0, 8), mode="reflect")
    with torch.no_grad():
        found, whole = model(images), model(mirrored)
    assert torch.equal(found.final, whole.final[..., :40, :37]) and found.attention.shape == (1, 1, 40, 37)
    with pytest.raises(ValueError, match="mirrored"):
        model(torch.rand(1, 1, 7, 32))


def test_the_loss_scales_the_density_itself() -> None:
    model = small()
    found, density = model(torch.rand(2, 1, 48, 48)), torch.rand(2, 1, 48, 48) / 100
    by_hand = density_experts_loss(found, 100 * density, density_scale=100.0)
    torch.testing.assert_close(model.loss(found, density), by_hand)
    by_hand.backward()
    assert all(p.grad is not None for p in model.parameters())
    without = model.loss(found, density, relative=0.0, importance=0.0, attention=0.0)
    squared = sum(
        2**level * (m - 100 * density).square().sum() for level, m in zip(found.levels, found.maps, strict=True)
    )
    torch.testing.assert_close(without, squared / 2)
    crowded = (density > 1e-5).float()
    entropy = nn.functional.binary_cross_entropy(found.attention, crowded, reduction="sum")
    more = model.loss(found, density, relative=0.0, importance=0.0) - without
    torch.testing.assert_close(more, entropy / 2, rtol=1e-3, atol=0)


def test_images_without_heads_and_an_empty_batch() -> None:
    model = small()
    nothing = model.loss(model(torch.rand(2, 1, 48, 48)), torch.zeros(2, 1, 48, 48))
    assert bool(nothing.isfinite())
    with pytest.raises(ValueError, match="target"):
        model.loss(model(torch.rand(2, 1, 48, 48)), torch.zeros(1, 1, 48, 48))
    with pytest.raises(TypeError, match="output"):
        density_experts_loss(torch.zeros(1, 1, 48, 48), torch.zeros(1, 1, 48, 48))
    none = model.eval()(torch.rand(0, 1, 48, 48))
    assert float(model.loss(none, torch.zeros(0, 1, 48, 48)).detach()) == 0.0 and model.count(none).shape == (0,)


def test_autocast_and_channels_last() -> None:
    model, images = small().eval(), torch.rand(2, 1, 48, 48)
    with torch.no_grad():
        plain = model(images).final
        last = model(images.contiguous(memory_format=torch.channels_last)).final
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(images)
        loss = model.loss(found, torch.rand(2, 1, 48, 48) / 100)
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.final.float(), plain, rtol=0.1, atol=0.05)
    assert loss.dtype is torch.float32 and bool(loss.isfinite())


def test_a_backbone_of_timm() -> None:
    torchvision_cpu.repair()
    timm = pytest.importorskip("timm")
    backbone = timm.create_model("resnet10t", features_only=True, out_indices=(1, 2, 3), pretrained=False)
    model = HMoDE(backbone, head_width=4)
    assert model.stride == 16
    assert model(torch.rand(1, 3, 64, 80)).final.shape == (1, 1, 64, 80)


def test_weights_of_torchvision_fit() -> None:
    torchvision_cpu.repair()
    vgg = pytest.importorskip("torchvision.models.vgg")
    theirs = vgg.make_layers(vgg.cfgs["D"], batch_norm=True).eval()
    ours = VGGPyramid().eval()
    ours.load_features(theirs.state_dict())
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[-1], theirs[:43](x))
    with pytest.raises(ValueError, match="state"):
        ours.load_features(vgg.make_layers(vgg.cfgs["A"], batch_norm=True).state_dict())


def test_pretrained_weights_come_from_torchvision_or_not_at_all(monkeypatch) -> None:
    torchvision_cpu.repair()
    models = pytest.importorskip("torchvision.models")
    vgg = models.vgg
    theirs = SimpleNamespace(features=vgg.make_layers(vgg.cfgs["D"], batch_norm=True))
    monkeypatch.setattr(models, "vgg16_bn", lambda weights: theirs if weights == "IMAGENET1K_V1" else None)
    first = make_backbone("vgg16_bn", pretrained=True).blocks[0][0].weight
    assert torch.equal(first, theirs.features[0].weight)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ImportError, match="torchvision"):
        make_backbone("vgg16_bn", pretrained=True)


class _Bare(nn.Module):
    def forward(self, x):
        return [x, x, x]


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda: HMoDE("resnet"), ValueError, "backbone"),
        (lambda: HMoDE(3), TypeError, "backbone"),
        (lambda: HMoDE(_Bare()), TypeError, "channels"),
        (lambda: HMoDE(_Bare(), channels=(1, 2), stride=16), ValueError, "channels"),
        (lambda: HMoDE(_Bare(), True, channels=(1, 1, 1), stride=16), ValueError, "pretrained"),
        (lambda: small(density_scale=0.0), ValueError, "density_scale"),
        (lambda: HMoDE(VGGPyramid(1, *SMALL), init_std=0.0), ValueError, "init_std"),
        (lambda: HMoDE(_Bare(), channels=(1, 1, 1), stride=16)(torch.rand(1, 1, 16, 16)), ValueError, "backbone"),
        (lambda: HMoDE(nn.Identity(), channels=(1, 1, 1), stride=16)(torch.rand(1, 1, 16, 16)), TypeError, "backbone"),
        (lambda: VGGPyramid(1, (4, 4), (1,)), ValueError, "depths"),
        (lambda: VGGPyramid(0), ValueError, "channels"),
        (lambda: VGGPyramid(1, (4, 4), (1, 1))(torch.rand(1, 1, 3, 4)), ValueError, "images"),
    ],
    ids=range(12),
)
def test_bad_arguments(make, error, word) -> None:
    with pytest.raises(error, match=word):
        make()
