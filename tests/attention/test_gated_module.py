"""GatedAttention: every variant of the paper against a direct formula, decoding, initialisation, bad input."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from softgate.attention import GatedAttention, KVCache, RotaryEmbedding
from softgate.errors import ArgumentTypeError, ArgumentValueError, SoftgateError

VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"gate_position": "none"},
    "G1 elementwise": {},
    "G1 headwise": {"granularity": "headwise"},
    "G1 shared": {"head_shared": True},
    "G1 headwise shared": {"head_shared": True, "granularity": "headwise"},
    "G1 ns": {"activation": "ns_sigmoid"},
    "G1 silu": {"activation": "silu"},
    "G1 additive silu": {"activation": "silu", "multiplicative": False},
    "G1 additive identity": {"activation": "identity", "multiplicative": False},
    "G1 input-independent": {"input_dependent": False},
    "G1 callable": {"activation": torch.tanh},
    "G1 rms norm": {"activation": "output_rms_norm"},
    "G1 silu only": {"activation": "output_silu"},
    "G2 elementwise": {"gate_position": "value"},
    "G2 headwise": {"gate_position": "value", "granularity": "headwise"},
    "G2 shared": {"gate_position": "value", "head_shared": True},
    "G3": {"gate_position": "key"},
    "G4": {"gate_position": "query"},
    "G5": {"gate_position": "output"},
    "G5 additive": {"gate_position": "output", "activation": "silu", "multiplicative": False},
    "G5 input-independent": {"gate_position": "output", "input_dependent": False},
}
SIZES = (24, 4, 2, 6)


def layer(variant: str, **options: Any) -> GatedAttention:
    torch.manual_seed(1)
    made = GatedAttention(*SIZES, **{"qk_norm": True, "rope": 10000.0, "bias": True, **VARIANTS[variant], **options})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made.double()


def formula(m: GatedAttention, x: Tensor) -> Tensor:
    """The module in one piece, on repeated key heads, by torch's own attention."""
    batch, length, _ = x.shape

    def heads(flat: Tensor) -> Tensor:
        return flat.view(batch, length, -1, 6).transpose(1, 2)

    def score(count: int, width: int) -> Tensor:
        if m.gate_proj is not None:
            logits = (x @ m.gate_proj.weight.T + m.gate_proj.bias).view(batch, length, count, width).transpose(1, 2)
        else:
            assert m.gate_logits is not None
            logits = m.gate_logits[None, :, None].expand(batch, -1, length, -1)
        sigma = 1 / (1 + torch.exp(-logits))
        name = m.activation if isinstance(m.activation, str) else "tanh"
        act = {"sigmoid": sigma, "ns_sigmoid": (1 + sigma) / 2, "silu": logits * sigma, "identity": logits,
               "tanh": torch.tanh(logits)}[name]  # fmt: skip
        return act.mean(1, keepdim=True) if m.head_shared else act

    def gated(y: Tensor, count: int, width: int) -> Tensor:
        return y * score(count, width) if m.multiplicative else y + score(count, width)

    width = 6 if m.granularity == "elementwise" else 1
    q, k, v = heads(m.q_proj(x)), heads(m.k_proj(x)), heads(m.v_proj(x))
    q = gated(q, 4, width) if m.gate_position == "query" else q
    k = gated(k, 2, width) if m.gate_position == "key" else k
    v = gated(v, 2, width) if m.gate_position == "value" else v
    q = F.rms_norm(q, (6,), m.q_norm.weight, 1e-6)  # type: ignore[union-attr]
    k = F.rms_norm(k, (6,), m.k_norm.weight, 1e-6)  # type: ignore[union-attr]
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, 6, 2) / 6)
    turn = torch.polar(torch.ones_like(angles), angles).to(torch.complex128)
    q, k = (torch.complex(z[..., :3], z[..., 3:]) * turn for z in (q, k))
    q, k = (torch.cat((z.real, z.imag), -1) for z in (q, k))
    y = F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), is_causal=True)
    if m.activation == "output_rms_norm":
        y = F.rms_norm(y, (6,), m.output_norm.weight, 1e-6)  # type: ignore[union-attr]
    elif m.activation == "output_silu":
        y = F.silu(y)
    elif m.gate_position == "sdpa":
        y = gated(y, 4, width)
    out = m.o_proj(y.transpose(1, 2).reshape(batch, length, 24))
    return gated(out[:, None], 1, 24)[:, 0] if m.gate_position == "output" else out


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_is_its_formula(variant: str) -> None:
    m = layer(variant)
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    # Rotary tables are computed in float32, so positions agree to its precision only.
    torch.testing.assert_close(m(x), formula(m, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_decoding_equals_prefill(variant: str) -> None:
    m, x = layer(variant), torch.randn(2, 9, 24, dtype=torch.float64)
    expected = m(x)
    for sizes in ([1] * 9, [4, 1, 3, 1], [9]):
        cache = KVCache(capacity=3)
        out = torch.cat([m(piece, cache=cache) for piece in x.split(sizes, dim=1)], dim=1)
        torch.testing.assert_close(out, expected)
        assert cache.length == 9


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_parameters_learn(variant: str) -> None:
    m = layer(variant)
    m(torch.randn(2, 7, 24, dtype=torch.float64)).square().sum().backward()
    for name, parameter in m.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_value_gates_are_cached_applied() -> None:
    """G2 gates live per key token, so the cache must hold gated values."""
    m = layer("G2 elementwise")
    x = torch.randn(1, 3, 24, dtype=torch.float64)
    cache = KVCache()
    with torch.no_grad():
        m(x, cache=cache)
        _, values = cache.append(torch.empty(1, 2, 0, 6).double(), torch.empty(1, 2, 0, 6).double())
        gate = torch.sigmoid(m.gate_proj(x)).view(1, 3, 2, 6).transpose(1, 2)  # type: ignore[misc]
        torch.testing.assert_close(values, m.v_proj(x).view(1, 3, 2, 6).transpose(1, 2) * gate)


def test_baseline_and_gated_differ_in_the_gate_alone() -> None:
    gated, plain = GatedAttention(24, 4, rope=1e4), GatedAttention(24, 4, rope=1e4, gate_position="none")
    assert gated.state_dict().keys() - plain.state_dict().keys() == {"gate_proj.weight"}
    plain.load_state_dict({k: v for k, v in gated.state_dict().items() if k != "gate_proj.weight"})
    torch.nn.init.constant_(gated.gate_proj.weight, 0.0)  # type: ignore[union-attr]
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(gated(x), 0.5 * plain(x))


def test_initialisation() -> None:
    m = GatedAttention(512, 8, bias=True)
    for linear in (m.q_proj, m.k_proj, m.v_proj, m.o_proj, m.gate_proj):
        assert linear is not None
        assert float(linear.weight.detach().std()) == pytest.approx(0.02, rel=0.02) and not linear.bias.any()
    scores = m.gate_scores(torch.randn(1, 50, 512))
    assert scores is not None and float(scores.mean()) == pytest.approx(0.5, abs=0.02)
    independent = GatedAttention(24, 4, input_dependent=False).gate_scores(torch.randn(1, 2, 24))
    assert independent is not None and (independent == 0.5).all()


def test_parameter_counts_of_the_paper() -> None:
    """Section 2.2 and Table 1: D = 2048, 32 heads of 128: 8.4M per layer elementwise."""
    for options, expected in (({}, 2048 * 4096), ({"granularity": "headwise"}, 2048 * 32)):
        with torch.device("meta"):
            m = GatedAttention(2048, 32, 4, 128, **options)
        assert m.gate_proj is not None and m.gate_proj.weight.numel() == expected


@pytest.mark.parametrize("variant", ["none", "G1 elementwise", "G2 headwise"])
def test_attention_weights(variant: str) -> None:
    m, x = layer(variant), torch.randn(2, 7, 24, dtype=torch.float64)
    keep = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    keep[0, ..., 5:] = False
    weights = m.attention_weights(x, attn_mask=keep)
    assert weights.shape == (2, 4, 7, 7) and not weights.requires_grad
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 7, dtype=torch.float64))
    assert (weights.triu(1) == 0).all() and (weights[0, ..., 5:] == 0).all()


def test_masks_and_positions() -> None:
    m, x = layer("G1 headwise"), torch.randn(2, 6, 24, dtype=torch.float64)
    # Left padding with shifted positions gives what the bare sequence gives.
    padded = torch.cat((torch.randn(2, 3, 24, dtype=torch.float64), x), dim=1)
    keep = torch.arange(9) >= 3
    shifted = m(padded, attn_mask=keep.expand(1, 1, 1, 9), positions=(torch.arange(9) - 3).clamp_min(0))
    torch.testing.assert_close(shifted[:, 3:], m(x))
    per_sequence = m(x, positions=torch.arange(6).expand(2, 6))
    torch.testing.assert_close(per_sequence, m(x))
    both_ways = m(x, is_causal=False)
    assert not torch.allclose(both_ways, m(x))
    torch.testing.assert_close(both_ways[:, -1], m(x)[:, -1])


def test_cross_attention_gates_from_the_query_stream() -> None:
    m = GatedAttention(24, 4, granularity="headwise").double()
    x, context = torch.randn(2, 3, 24, dtype=torch.float64), torch.randn(2, 5, 24, dtype=torch.float64)
    out = m(x, context=context, is_causal=False)
    assert out.shape == (2, 3, 24)
    assert m.attention_weights(x, context=context, is_causal=False).shape == (2, 4, 3, 5)
    with torch.no_grad():
        m.gate_proj.weight.zero_()  # type: ignore[union-attr]
    plain = GatedAttention(24, 4, gate_position="none").double()
    plain.load_state_dict({k: v for k, v in m.state_dict().items() if k != "gate_proj.weight"})
    torch.testing.assert_close(m(x, context=context, is_causal=False), 0.5 * plain(x, context=context, is_causal=False))


def test_any_attention_with_the_signature_of_sdpa() -> None:
    seen: dict[str, Any] = {}

    def average(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        seen.update(options)
        return value.mean(-2, keepdim=True).expand(*query.shape[:-1], -1)

    m = GatedAttention(24, 4, attention=average).double()
    x = torch.randn(2, 3, 24, dtype=torch.float64)
    m(x)
    assert seen.keys() == {"attn_mask", "dropout_p", "is_causal", "enable_gqa"}
    torch.testing.assert_close(m.attention_weights(x), torch.full((2, 4, 3, 3), 1 / 3, dtype=torch.float64))


def test_dropout_acts_in_training_only() -> None:
    m, x = layer("G1 elementwise", dropout=0.5), torch.randn(2, 7, 24, dtype=torch.float64)
    assert not torch.equal(m(x), m(x))
    m.eval()
    assert torch.equal(m(x), m(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_copies_and_pickles(variant: str) -> None:
    m, x = layer(variant), torch.randn(1, 3, 24, dtype=torch.float64)
    for twin in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert torch.equal(twin(x), m(x))
    fresh = layer(variant)
    fresh.load_state_dict(m.state_dict())
    assert torch.equal(fresh(x), m(x))
    assert "GatedAttention" in repr(m) and "gate_position" in repr(m)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["G1 elementwise", "G2 headwise", "none"])
def test_compiles_without_a_graph_break(variant: str) -> None:
    torch._dynamo.reset()
    m, x = layer(variant), torch.randn(2, 5, 24, dtype=torch.float64)
    torch.testing.assert_close(torch.compile(m, fullgraph=True, backend="aot_eager")(x), m(x))


def test_autocast() -> None:
    m, x = layer("G1 elementwise").float(), torch.randn(2, 5, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = m(x)
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.float(), m(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_modules(variant: str, dtype: torch.dtype) -> None:
    m, x = layer(variant), torch.randn(2, 5, 24, dtype=torch.float64)
    expected = m(x)
    out = m.to(dtype)(x.to(dtype))
    assert out.dtype is dtype
    torch.testing.assert_close(out.double(), expected, rtol=0.05, atol=0.1)


BAD: list[tuple[dict[str, Any], type[SoftgateError], str]] = [
    ({"embed_dim": 0}, ArgumentValueError, "embed_dim"),
    ({"embed_dim": 24.0}, ArgumentTypeError, "embed_dim"),
    ({"embed_dim": 26}, ArgumentValueError, "embed_dim"),
    ({"num_heads": 0}, ArgumentValueError, "num_heads"),
    ({"num_heads": True}, ArgumentTypeError, "num_heads"),
    ({"num_kv_heads": 3}, ArgumentValueError, "num_kv_heads"),
    ({"num_kv_heads": 8}, ArgumentValueError, "num_kv_heads"),
    ({"num_kv_heads": -1}, ArgumentValueError, "num_kv_heads"),
    ({"head_dim": 0}, ArgumentValueError, "head_dim"),
    ({"head_dim": "6"}, ArgumentTypeError, "head_dim"),
    ({"head_dim": 5, "rope": 1e4}, ArgumentValueError, "head_dim"),
    ({"gate_position": "G1"}, ArgumentValueError, "gate_position"),
    ({"gate_position": None}, ArgumentTypeError, "gate_position"),
    ({"granularity": "rowwise"}, ArgumentValueError, "granularity"),
    ({"granularity": 1}, ArgumentTypeError, "granularity"),
    ({"head_shared": 1}, ArgumentTypeError, "head_shared"),
    ({"multiplicative": "no"}, ArgumentTypeError, "multiplicative"),
    ({"input_dependent": None}, ArgumentTypeError, "input_dependent"),
    ({"qk_norm": 1}, ArgumentTypeError, "qk_norm"),
    ({"bias": 0}, ArgumentTypeError, "bias"),
    ({"activation": "relu6"}, ArgumentValueError, "activation"),
    ({"activation": None}, ArgumentTypeError, "activation"),
    ({"activation": "output_silu", "gate_position": "value"}, ArgumentValueError, "activation"),
    ({"activation": "output_rms_norm", "head_shared": True}, ArgumentValueError, "activation"),
    ({"activation": "output_silu", "multiplicative": False}, ArgumentValueError, "activation"),
    ({"gate_position": "output", "granularity": "headwise"}, ArgumentValueError, "granularity"),
    ({"gate_position": "output", "head_shared": True}, ArgumentValueError, "head_shared"),
    ({"rope": 0.0}, ArgumentValueError, "base"),
    ({"rope": "1e4"}, ArgumentTypeError, "rope"),
    ({"rope": True}, ArgumentTypeError, "rope"),
    ({"attention": "nonsense"}, ArgumentValueError, "attention"),
    ({"attention": 3}, ArgumentTypeError, "attention"),
    ({"dropout": 1.0}, ArgumentValueError, "dropout"),
    ({"dropout": "0"}, ArgumentTypeError, "dropout"),
]


@pytest.mark.parametrize(("change", "error", "word"), BAD, ids=range(len(BAD)))
def test_bad_options(change: dict[str, Any], error: type[SoftgateError], word: str) -> None:
    with pytest.raises(error, match=word):
        GatedAttention(**{"embed_dim": 24, "num_heads": 4, **change})


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"hidden": torch.ones(3, 24)}, "hidden"),
        ({"hidden": torch.ones(1, 3, 23)}, "hidden"),
        ({"attn_mask": torch.ones(4, 4, dtype=torch.bool)}, "attn_mask"),
        ({"attn_mask": torch.ones(3, 3, dtype=torch.long)}, "attn_mask"),
        ({"is_causal": None}, "is_causal"),
        ({"context": torch.ones(1, 3, 24)}, "context"),
        ({"positions": torch.ones(3)}, "positions"),
        ({"positions": torch.arange(4)}, "cos and sin"),
    ],
)
def test_bad_calls(arguments: dict[str, Any], word: str) -> None:
    m = GatedAttention(24, 4, rope=1e4)
    with pytest.raises(SoftgateError, match=word):
        m(**{"hidden": torch.ones(1, 3, 24), **arguments})


def test_partial_rotation() -> None:
    m = GatedAttention(24, 4, rope=RotaryEmbedding(2, 100.0)).double()
    whole = GatedAttention(24, 4, rope=100.0).double()
    whole.load_state_dict(m.state_dict())
    x = torch.randn(1, 5, 24, dtype=torch.float64)
    assert not torch.allclose(m(x), whole(x))
