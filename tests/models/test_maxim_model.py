"""MAXIM: published sizes, any size of image, stages and scales, weights from files, what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from softgate.lab.memory import peak_bytes
from softgate.models import MAXIM, MAXIM_CONFIGS, RDCAB, MAXIMConfig, load_flax_checkpoint, restore
from softgate.models.multi_axis.flax_weights import _leaves

#: Parameters with one supervised scale and with three (the authors' code).
PUBLISHED = {
    "S-1": (6_108_515, 6_139_561),
    "S-2": (13_353_830, 14_176_178),
    "S-3": (20_599_145, 22_212_795),
    "M-1": (19_361_219, 19_464_265),
    "M-2": (40_839_110, 43_227_986),
    "M-3": (62_317_001, 66_991_707),
}
SMALL: dict[str, Any] = {
    "features": 4, "depth": 2, "groups": 1, "bottleneck_blocks": 1, "num_supervision_scales": 1,
    "block_size": (4, 2), "grid_size": (2, 4), "low_block_size": (2, 2),
}  # fmt: skip


def small(**changes: Any) -> MAXIM:
    return MAXIM(MAXIMConfig(**{**SMALL, **changes}))


def noisy(model: MAXIM) -> MAXIM:
    """Weights large enough that every branch shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        found = tuple(
            sum(p.numel() for p in MAXIM(name, num_supervision_scales=scales).parameters()) for scales in (1, 3)
        )
    assert found == PUBLISHED[name]


def test_shapes_of_all_stages_and_scales() -> None:
    with torch.device("meta"):
        model = MAXIM("S-3", groups=1, bottleneck_blocks=1)
        found = model(torch.empty(2, 3, 64, 192), return_all=True)
    assert model.size_multiple == 64 and set(MAXIM_CONFIGS) == set(PUBLISHED)
    assert [[tuple(x.shape) for x in stage] for stage in found] == 3 * [
        [(2, 3, 16, 48), (2, 3, 32, 96), (2, 3, 64, 192)]
    ]


def test_without_output_layer_it_gives_back_the_image() -> None:
    model = noisy(small(stages=2, num_supervision_scales=2))
    head = model.stages[-1].outputs[-1]
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    x = torch.rand(2, 3, 16, 24)
    assert torch.equal(model(x), x)


def test_every_parameter_gets_a_gradient() -> None:
    model = noisy(small(stages=3, num_supervision_scales=2))
    outputs = model(torch.rand(1, 3, 8, 16), return_all=True)
    sum(x.square().mean() for stage in outputs for x in stage).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # a hidden unit of the channel attention may be off for this image
    assert not {name for name in without if ".attention.squeeze." not in name and ".excite.weight" not in name}


def test_the_whole_image_is_seen() -> None:
    model = noisy(small()).double()
    x = torch.rand(1, 3, 16, 24, dtype=torch.float64, requires_grad=True)
    model(x)[0, 0, 0, 0].backward()
    assert bool((x.grad.abs().sum((0, 1)) > 0).all())


def test_memory_formats_and_16_bits() -> None:
    model, x = small(stages=2), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        plain = model(x)
        torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), plain)
        half = copy.deepcopy(model).bfloat16()
        assert float((half(x.bfloat16()).float() - plain).norm()) < 0.03 * float(plain.norm())


def test_compiled_and_exported_it_gives_the_same() -> None:
    model, x = small(depth=1).double(), torch.rand(1, 3, 4, 4, dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def test_checkpointing_keeps_the_gradient_and_saves_memory() -> None:
    x = torch.rand(1, 3, 32, 32)
    gradients, peaks = [], []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        model = small(features=8, checkpoint=checkpoint)

        def step(model: MAXIM = model) -> tuple[Tensor, ...]:
            return torch.autograd.grad(model(x).square().mean(), list(model.parameters()), allow_unused=True)

        gradients.append(step())
        peaks.append(peak_bytes(step))
    for kept, again in zip(*gradients, strict=True):
        assert (kept is None) == (again is None)
        if kept is not None:
            torch.testing.assert_close(kept, again)
    assert peaks[1] < 0.75 * peaks[0]


def test_quirks_of_the_authors_code_can_be_left() -> None:
    strict = small(stages=2, cross_gating=False, expansion=4)
    free = small(stages=2, cross_gating=False, expansion=4, strict_reference=False)
    assert strict.stages[1].encoders[0].cross is not None and free.stages[1].encoders[0].cross is None
    widths = [m.stages[0].decoders[0].mixers[0].w_in.out_features for m in (strict, free)]
    assert widths == [2 * 8, 4 * 8]
    assert strict.config.sizes(2) == ((2, 2), (2, 2)) and free.config.sizes(2) == ((2, 2), (8, 8))
    assert small(low_grid_size=(2, 1), strict_reference=False).size_multiple == 8
    for model in (strict, small(stages=2, cross_gating=False, strict_reference=False, low_grid_size=(2, 2))):
        assert model(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)


def test_images_of_other_channels() -> None:
    x = torch.rand(1, 1, 8, 8)
    plain, always = (small(stages=2, in_channels=1, out_channels=1, always_residual=a) for a in (False, True))
    always.load_state_dict(plain.state_dict())
    torch.testing.assert_close(always(x, return_all=True)[0][0], plain(x, return_all=True)[0][0] + x)
    assert small(in_channels=4, out_channels=1)(torch.rand(1, 4, 8, 8)).shape == (1, 1, 8, 8)


class Doubled(nn.Module):
    """Twice the image, local: padding and tiles must not show."""

    size_multiple = 8

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        assert x.shape[2] % 8 == x.shape[3] % 8 == 0
        return 2 * x


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 5, 70), (2, 3, 33, 16), (1, 8, 9)])
def test_any_size_comes_back(shape: tuple[int, ...]) -> None:
    image = torch.rand(shape)
    for options in ({}, {"ensemble": 8}, {"tile": 16, "overlap": 4}, {"tile": 8, "overlap": 0}):
        torch.testing.assert_close(restore(Doubled(), image, **options), 2 * image)


def test_sizes_that_fit_are_the_model_itself() -> None:
    model, x = small(), torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        assert torch.equal(restore(model, x), model(x))
        assert torch.equal(restore(model, x, tile=24, overlap=8), model(x))
    assert not torch.equal(restore(model, x, tile=16, overlap=8), model(x))
    assert not restore(model, x).requires_grad


def test_padding_as_in_the_authors_code() -> None:
    """Odd sides grow by one at their end, then both edges are mirrored alike."""

    class Kept(Doubled):
        def forward(self, x: Tensor) -> Tensor:
            self.image = x
            return x

    model, image = Kept(), torch.rand(1, 1, 11, 12)
    restore(model, image)
    even = nn.functional.pad(image, (0, 0, 0, 1), mode="reflect")
    assert torch.equal(model.image, nn.functional.pad(even, (2, 2, 2, 2), mode="reflect"))


def test_ensemble_is_the_mean_over_the_symmetries_of_a_square() -> None:
    model, x = noisy(small(block_size=(2, 2), grid_size=(2, 2))).double(), torch.rand(1, 3, 8, 8, dtype=torch.float64)
    found = restore(model, x, ensemble=8)
    model.requires_grad_(False)
    for change in (lambda y: y.flip(2), lambda y: y.mT):
        torch.testing.assert_close(restore(model, change(x), ensemble=8), change(found))
        assert float((model(change(x)) - change(model(x))).abs().max()) > 1e-3


def test_bytes_are_rounded_and_clipped() -> None:
    image = torch.tensor([0, 100, 200], dtype=torch.uint8).reshape(1, 1, 3)
    found = restore(Doubled(), image)
    assert found.dtype is torch.uint8 and found.flatten().tolist() == [0, 200, 255]
    assert float(restore(Doubled(), torch.full((1, 2, 2), 3.0)).max()) == 6.0


def zeros_of(model: nn.Module) -> dict[str, Any]:
    """Arrays of zeros in the layout of the authors' code."""
    found = {}
    for path, (layer, parameter) in _leaves(model, ""):
        shape = parameter.shape
        if path.endswith("kernel"):
            order = {"Linear": (1, 0), "Conv2d": (2, 3, 1, 0), "ConvTranspose2d": (2, 3, 0, 1)}[type(layer).__name__]
            shape = tuple(shape[axis] for axis in order)
        found[path] = np.zeros(shape, np.float32)
    return found


@pytest.mark.parametrize("cross_gating", [True, False])
def test_every_parameter_has_a_name_of_its_own_in_the_authors_code(cross_gating: bool) -> None:
    model = small(stages=2, cross_gating=cross_gating)
    arrays = zeros_of(model)
    assert len(arrays) == len(list(model.parameters()))
    load_flax_checkpoint(model, arrays)
    assert all(not p.any() for p in model.parameters())
    names = {path.split("/")[0] for path in arrays}
    assert ("Conv_3" in names and "stage_1_input_catconv_0" in names) != cross_gating
    assert "UpSampleRatio_15" in names and "UpSampleRatio_16" not in names


def test_transposed_convolutions_are_turned_around() -> None:
    model = small()
    arrays = zeros_of(model)
    path = "stage_0_decoder_block_0/ConvTranspose_0/kernel"
    arrays[path][0, 1, 2, 3] = 1.0
    load_flax_checkpoint(model, arrays)
    weight = model.stages[0].decoders[1].up.weight.detach()
    assert float(weight[2, 3, 1, 0]) == 1.0 and float(weight.sum()) == 1.0


def test_checkpoints_that_do_not_fit_change_nothing(tmp_path) -> None:
    model = RDCAB(4)
    before, arrays = copy.deepcopy(model.state_dict()), zeros_of(model)
    name = next(iter(arrays))
    for broken in (
        {k: v for k, v in arrays.items() if k != name},
        {**arrays, "more/kernel": np.zeros(1)},
        {**arrays, name: np.zeros(7, np.float32)},
        {**arrays, name: arrays[name].astype(int)},
    ):
        with pytest.raises(ValueError, match="checkpoint"):
            load_flax_checkpoint(model, broken)
    np.savez(tmp_path / "other.npz", x=np.zeros(1))
    np.savez(tmp_path / "objects.npz", **{"opt/target/x": np.array([{}], dtype=object)})
    (tmp_path / "text.npz").write_text("no archive")
    for file in ("other.npz", "objects.npz", "text.npz", "absent.npz"):
        with pytest.raises(RuntimeError, match=file):
            load_flax_checkpoint(model, tmp_path / file)
    with pytest.raises(TypeError, match="MAXIM"):
        load_flax_checkpoint(nn.Sequential(nn.ReLU()), {})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda: MAXIM("S-4"), ValueError, "config"),
        (lambda: MAXIM(3), TypeError, "config"),
        (lambda: MAXIM("S-1", num_scales=1), TypeError, "num_scales"),
        (lambda: small(num_supervision_scales=3), ValueError, "num_supervision_scales"),
        (lambda: small(depth=0), ValueError, "depth"),
        (lambda: small(grid_size=4), TypeError, "grid_size"),
        (lambda: small(cross_gating=1), TypeError, "cross_gating"),
        (lambda: small(high_res_levels=-1), ValueError, "high_res_levels"),
        (lambda: small()(torch.rand(1, 3, 12, 16)), ValueError, "multiples of 8.*restore"),
        (lambda: small()(torch.rand(1, 1, 8, 8)), ValueError, "images"),
        (lambda: small()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), TypeError, "images"),
        (lambda: restore(nn.Identity(), torch.rand(1, 8, 8)), TypeError, "size_multiple"),
        (lambda: restore(Doubled(), [1]), TypeError, "image"),
        (lambda: restore(Doubled(), torch.zeros(1, 8, 8, dtype=torch.int64)), TypeError, "image"),
        (lambda: restore(Doubled(), torch.rand(8, 8)), ValueError, "image"),
        (lambda: restore(Doubled(), torch.rand(1, 8, 8), ensemble=4), ValueError, "ensemble"),
        (lambda: restore(Doubled(), torch.rand(1, 8, 8), tile=12), ValueError, "tile"),
        (lambda: restore(Doubled(), torch.rand(1, 8, 8), tile=8, overlap=3), ValueError, "overlap"),
        (lambda: restore(Doubled(), torch.rand(1, 8, 8), tile=8, overlap=8), ValueError, "overlap"),
    ],
    ids=range(19),
)
def test_bad_arguments(make, error, word) -> None:
    with pytest.raises(error, match=word):
        make()
