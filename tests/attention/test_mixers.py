"""The mixer layers: states, padding, the adapter in a GPT, bad input."""

import pytest
import torch

from softgate.attention import (
    QLSTM,
    RGLRU,
    SSD,
    KVCache,
    LinearAttention,
    MixerLayer,
    NormalizedAttention,
    SelectiveSSM,
    SoftmaxMixer,
    StateCache,
)
from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.models import GPT, GPTConfig

LAYERS = {
    "linear": lambda: LinearAttention(8, 4, 2),
    "linear_grouped": lambda: LinearAttention(8, 8, 4, num_kv_heads=2),
    "normalized": lambda: NormalizedAttention(8, 4, 2),
    "softmax": lambda: SoftmaxMixer(8, 4, 2),
    "s6": lambda: SelectiveSSM(8, 3),
    "ssd": lambda: SSD(8, 3, 2),
    "qlstm": lambda: QLSTM(8, reversed=False),
    "qlstm_reversed": lambda: QLSTM(8),
    "rglru": lambda: RGLRU(8),
}
layers = pytest.mark.parametrize("name", LAYERS)


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


@layers
@pytest.mark.parametrize("cut", [1, 2, 11])
def test_a_sequence_can_be_cut_anywhere(name, cut):
    layer, x = LAYERS[name]().double(), draw(2, 12, 8)
    whole, last = layer(x, return_state=True)
    first, state = layer(x[:, :cut], return_state=True)
    second, end = layer(x[:, cut:], state, return_state=True)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(end, last)


@layers
def test_causality(name):
    layer, x = LAYERS[name]().double(), draw(1, 12, 8)
    other = torch.cat((x[:, :7], draw(1, 5, 8)), 1)
    torch.testing.assert_close(layer(x)[:, :7], layer(other)[:, :7])


@layers
@pytest.mark.parametrize("side", ["front", "back"])
def test_padding_is_as_if_it_were_not_there(name, side):
    layer, x, padding = LAYERS[name]().double(), draw(2, 6, 8), draw(2, 3, 8)
    keep = torch.ones(2, 9, dtype=torch.bool)
    if side == "front":
        padded, real = torch.cat((padding, x), 1), slice(3, 9)
        keep[:, :3] = False
    else:
        padded, real = torch.cat((x, padding), 1), slice(0, 6)
        keep[:, 6:] = False
    whole, state = layer(padded, return_state=True, keep=keep)
    alone, expected = layer(x, return_state=True)
    torch.testing.assert_close(whole[:, real], alone)
    if name != "softmax":
        torch.testing.assert_close(state[0], expected[0])


@layers
def test_empty_batches_and_single_tokens(name):
    layer = LAYERS[name]()
    assert layer(torch.zeros(0, 5, 8)).shape == (0, 5, 8)
    assert layer(torch.zeros(3, 1, 8)).shape == (3, 1, 8)


@layers
def test_long_sequences_have_a_state_of_constant_size(name):
    layer = LAYERS[name]()
    sizes = [sum(t.numel() for t in layer(torch.zeros(1, n, 8), return_state=True)[1]) for n in (4, 600)]
    assert (sizes[0] == sizes[1]) == (name != "softmax")


@layers
def test_bfloat16_layers_keep_their_dtype_and_a_float32_state(name):
    layer = LAYERS[name]().bfloat16()
    out, state = layer(torch.randn(1, 5, 8).bfloat16(), return_state=True)
    again = layer(torch.randn(1, 5, 8).bfloat16(), state)
    assert out.dtype is again.dtype is torch.bfloat16
    assert state[0].dtype is (torch.bfloat16 if name == "softmax" else torch.float32)


@pytest.mark.parametrize("mixer", ["linear", "normalized", "softmax", "s6", "ssd", "qlstm", "rglru"])
def test_in_a_gpt_decoding_with_a_state_is_decoding_anew(mixer):
    options = {"mixer": mixer} | ({} if mixer in ("qlstm", "rglru") else {"state_dim": 4})
    config = GPTConfig(
        vocab_size=16, num_layers=2, num_heads=2, embed_dim=8, attention=MixerLayer, attention_options=options
    )
    model = GPT(config)
    prompt = torch.randint(16, (2, 3))
    with_state = model.generate(prompt, 5, temperature=0.0)
    assert torch.equal(with_state, model.generate(prompt, 5, temperature=0.0, cache="none"))
    cache = model.new_cache()
    model(prompt, cache=cache)
    assert all(isinstance(c, StateCache) and c.length == 3 for c in cache)


def test_the_adapter_takes_masks_of_keys_only():
    layer, x = MixerLayer(8, 2, mixer="ssd", state_dim=3).double(), draw(2, 6, 8)
    keep = torch.ones(2, 6, dtype=torch.bool)
    keep[0, 4:] = False
    out = layer(x, attn_mask=keep[:, None, None, :])
    torch.testing.assert_close(out[:1, :4], layer(x[:1, :4]))
    for mask in (torch.ones(6, 6, dtype=torch.bool), torch.ones(2, 2, 1, 6, dtype=torch.bool)):
        with pytest.raises(ArgumentValueError, match="attn_mask"):
            layer(x, attn_mask=mask)
    with pytest.raises(ArgumentTypeError, match="attn_mask"):
        layer(x, attn_mask=torch.zeros(1, 6))
    with pytest.raises(ArgumentValueError, match="is_causal"):
        layer(x, is_causal=False)
    with pytest.raises(ArgumentTypeError, match="cache"):
        layer(x, cache=KVCache())
    with pytest.raises(ArgumentValueError, match="mixer"):
        MixerLayer(8, mixer="lstm")


def test_clamped_logits_are_counted_while_training():
    layer = NormalizedAttention(8, 4, 2)
    with torch.no_grad():
        layer.eta_proj.bias.copy_(torch.tensor([40.0, 0.0]))
        layer.eta_proj.weight.zero_()
    assert layer(torch.ones(2, 5, 8)).isfinite().all() and int(layer.clamped) == 10
    layer.eval()(torch.ones(2, 5, 8))
    assert int(layer.clamped) == 10 and "clamped" not in layer.state_dict()


def test_steps_of_state_space_models_start_small():
    for steps in (SelectiveSSM(16).step_proj.bias, SSD(16, num_heads=4).step_bias):
        delta = torch.nn.functional.softplus(steps.detach())
        assert float(delta.min()) >= 0.9e-3 and float(delta.max()) <= 1.1e-1


def test_bad_sizes_and_calls():
    with pytest.raises(ArgumentValueError, match="num_heads"):
        LinearAttention(8, 6, 4)
    with pytest.raises(ArgumentValueError, match="num_kv_heads"):
        LinearAttention(8, 8, 4, num_kv_heads=3)
    with pytest.raises(ArgumentTypeError, match="state_dim"):
        LinearAttention(8, 2.0)
    with pytest.raises(ArgumentValueError, match="norm"):
        NormalizedAttention(8, norm="softmax")
    with pytest.raises(ArgumentValueError, match="num_heads"):
        SSD(8, num_heads=3)
    with pytest.raises(ArgumentTypeError, match="reversed"):
        QLSTM(8, reversed=1)
    with pytest.raises(ArgumentValueError, match="conv_width"):
        RGLRU(8, conv_width=0)
    layer = LinearAttention(8)
    with pytest.raises(ArgumentValueError, match="x must"):
        layer(torch.zeros(2, 8))
    with pytest.raises(ArgumentTypeError, match="keep"):
        layer(torch.zeros(2, 3, 8), keep=torch.ones(2, 3))
    with pytest.raises(ArgumentValueError, match="keep"):
        layer(torch.zeros(2, 3, 8), keep=torch.ones(2, 4, dtype=torch.bool))
