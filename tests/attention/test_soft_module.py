"""SoftmaxFreeAttention: maps of any size, padding, what it refuses, diagnostics, checkpointing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from softgate.attention import SoftmaxFreeAttention
from softgate.models import ViT, ViTConfig


def layer(ratio: int = 2, **options: Any) -> SoftmaxFreeAttention:
    return SoftmaxFreeAttention(16, 2, ratio, **options).double()


def tokens(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, height * width, 16, dtype=torch.float64)


@pytest.mark.parametrize("size", [(6, 6), (7, 5), (2, 9), (2, 2)])
@pytest.mark.parametrize("options", [{}, {"normalized": False, "conv_size": 0}, {"ratio": 1}])
def test_maps_of_every_size(size: tuple[int, int], options: dict[str, Any]):
    """Heights and widths that ``ratio`` does not divide are cut by the convolution, as in the paper."""
    mixer, x = layer(**options), tokens(*size)
    y = mixer(x, *size)
    assert y.shape == x.shape and y.isfinite().all()
    as_map = mixer(x.mT.unflatten(-1, size))
    torch.testing.assert_close(as_map.flatten(2).mT, y)


def test_no_samples():
    assert layer()(tokens(4, 4, batch=0), 4, 4).shape == (0, 16, 16)


def test_there_is_no_key_projection():
    assert {name for name, _ in layer().named_children()} == {
        "q_proj", "v_proj", "o_proj", "landmark_conv", "landmark_norm", "value_conv",
    }  # fmt: skip


def test_the_local_filter_is_one_per_head():
    """Without attention (queries far from all landmarks) what is left is the filtered value of the same head."""
    mixer = SoftmaxFreeAttention(4, 2, 1, conv_size=3).double()
    with torch.no_grad():
        mixer.q_proj.bias.fill_(1e4)
        for linear in (mixer.v_proj, mixer.o_proj):
            linear.weight.copy_(torch.eye(4))
            linear.bias.zero_()
    x = torch.randn(1, 12, 4, dtype=torch.float64)
    y = mixer(x, 3, 4)
    filters = mixer.value_conv.weight
    for feature in range(4):
        channel = x[..., feature].reshape(1, 1, 3, 4)
        expected = torch.nn.functional.conv2d(channel, filters[feature // 2][None], padding=1).flatten()
        torch.testing.assert_close(y[0, :, feature], expected)


def test_padded_tokens_change_nothing():
    mixer, x = layer(), tokens(4, 6)
    keep = torch.ones(2, 24, dtype=torch.bool)
    keep[0, 12:] = False
    other = torch.where(keep[..., None], x, 7.0)
    found, changed = (mixer(t, 4, 6, key_padding_mask=keep) for t in (x, other))
    torch.testing.assert_close(found[keep], changed[keep])
    assert not torch.allclose(mixer(x, 4, 6)[keep], mixer(other, 4, 6)[keep])


def test_the_residual_of_newtons_iteration_is_shown():
    x = 0.01 * tokens(6, 6)  # tokens that hardly differ, and a norm that is turned down: landmarks lie close together
    mixer = layer(newton_iters=5)
    with torch.no_grad():
        mixer.landmark_norm.weight.fill_(0.01)
    few = mixer.newton_residual(x, 6, 6)
    mixer.newton_iters = 40
    many = mixer.newton_residual(x, 6, 6)
    assert few.shape == (2, 2) and few.min() > 0.5 > 1e-2 > many.max()


def test_gradient_checkpointing_gives_the_same_gradients():
    mixer, x = layer(), tokens(4, 4).requires_grad_()
    (plain,) = torch.autograd.grad(mixer(x, 4, 4).sum(), x)
    (again,) = torch.autograd.grad(checkpoint(mixer, x, 4, 4, use_reentrant=False).sum(), x)
    torch.testing.assert_close(plain, again)


def test_bfloat16_layers_stay_close_to_float64():
    mixer, x = layer(), tokens(6, 6)
    exact = mixer(x, 6, 6)
    rounded = mixer.bfloat16()(x.bfloat16(), 6, 6)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.double() - exact).abs().max() < 0.1 * exact.abs().max()


def test_it_mixes_the_tokens_of_a_vit_and_compiles():
    config = ViTConfig(
        image_size=8, patch_size=2, depth=1, attention=SoftmaxFreeAttention, attention_options={"ratio": 2}
    )
    vit = ViT(config)
    images = torch.randn(2, 1, 8, 8)
    expected = vit(images)
    torch._dynamo.reset()
    compiled = torch.compile(vit, backend="aot_eager", fullgraph=True)(images)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((16, 3, 2), "embed_dim"),
        ((16, 2, 0), "ratio"),
        ((16, 2, 2.0), "ratio"),
        ((16, 2, 2, 4), "conv_size"),
        ((16, 2, 2, -1), "conv_size"),
        ((16, 2, 2, 3, "yes"), "normalized"),
        ((16, 2, 2, 3, True, 0), "newton_iters"),
        ((0, 2, 2), "embed_dim"),
    ],
)
def test_sizes_that_do_not_fit_are_named(arguments: tuple[Any, ...], word: str):
    with pytest.raises((ValueError, TypeError), match=word):
        SoftmaxFreeAttention(*arguments)


@pytest.mark.parametrize(
    ("arguments", "options", "word"),
    [
        ((torch.ones(1, 16, 16),), {}, "height"),
        ((torch.ones(1, 16, 16), 4), {}, "width"),
        ((torch.ones(1, 16, 16), 4, 5), {}, "x"),
        ((torch.ones(1, 16, 15), 4, 4), {}, "x"),
        ((torch.ones(1, 16, 16), 1, 16), {}, "height"),
        ((torch.ones(1, 16, 4, 1),), {}, "width"),
        ((None, 4, 4), {}, "x"),
        ((torch.ones(1, 16, 16), 4, 4), {"is_causal": True}, "is_causal"),
        ((torch.ones(1, 16, 16), 4, 4), {"attn_mask": torch.ones(16, 16, dtype=torch.bool)}, "attn_mask"),
        ((torch.ones(1, 16, 16), 4, 4), {"cache": object()}, "cache"),
        ((torch.ones(1, 16, 16), 4, 4), {"key_padding_mask": torch.ones(1, 15, dtype=torch.bool)}, "key_padding_mask"),
        ((torch.ones(1, 16, 16), 4, 4), {"key_padding_mask": torch.ones(1, 16)}, "key_padding_mask"),
    ],
)
def test_calls_that_cannot_be_are_named(arguments: tuple[Any, ...], options: dict[str, Any], word: str):
    with pytest.raises((ValueError, TypeError), match=word):
        SoftmaxFreeAttention(16, 2, 2)(*arguments, **options)
