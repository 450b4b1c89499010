"""HeadGate and HeadGatedAttention: every kind by hand, the start, fine-tuning, leaks, decoding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from softgate.attention import HeadGate, HeadGatedAttention, KVCache, MultiHeadAttention
from softgate.diagnostics import attention_sink
from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.models import GPT, GPTConfig

KINDS = ("linear", "mlp", "mlp2", "all_features", "per_head", "unconditional")
HEADS, WIDTH, SLICE = 4, 32, 8


def by_hand(gate: HeadGate, hidden: Tensor) -> Tensor:
    """Logits (B, H, T) from loops over heads, slices and layers."""
    if gate.kind == "unconditional":
        assert gate.logit is not None
        return gate.logit[None, :, None].expand(hidden.shape[0], HEADS, hidden.shape[1])
    layers = list(gate.layers or ())
    if gate.kind == "all_features":
        return (hidden @ layers[0].weight.mT + layers[0].bias).mT
    logits = []
    for head in range(HEADS):
        x = hidden[..., head * SLICE : (head + 1) * SLICE]
        for index, layer in enumerate(layers):
            x = torch.nn.functional.linear(x.relu() if index else x, layer.weight[head], layer.bias[head])
        logits.append(x[..., 0])
    stacked = torch.stack(logits, 1)
    return stacked.mean(-1, keepdim=True).expand_as(stacked) if gate.kind == "per_head" else stacked


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fine_tune", [False, True])
def test_the_gate_by_hand(kind: str, fine_tune: bool) -> None:
    gate = HeadGate(WIDTH, HEADS, kind, fine_tune=fine_tune).double()
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter)
    hidden = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    expected = by_hand(gate, hidden).sigmoid() * (4 if fine_tune else 1)
    torch.testing.assert_close(gate(hidden, is_causal=False), expected[..., None])


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("linear", HEADS * (SLICE + 1)),
        ("mlp", HEADS * (2 * SLICE + 2 + 2 + 1)),
        ("mlp2", HEADS * (SLICE * SLICE + SLICE + SLICE + 1)),
        ("all_features", HEADS * (WIDTH + 1)),
        ("per_head", HEADS * (SLICE + 1)),
        ("unconditional", HEADS),
    ],
)
def test_number_of_parameters(kind: str, count: int) -> None:
    assert sum(p.numel() for p in HeadGate(WIDTH, HEADS, kind).parameters()) == count


def test_the_start() -> None:
    zeros = torch.zeros(1, 3, WIDTH)
    for init in (0.25, 0.5):
        for kind in ("linear", "per_head"):
            start = HeadGate(WIDTH, HEADS, kind, init)(zeros, is_causal=False)
            torch.testing.assert_close(start, torch.full_like(start, init))
    assert (HeadGate(WIDTH, HEADS, "unconditional", 0.25)(zeros) == 0.5).all()
    weight = HeadGate(WIDTH, HEADS).layers[0].weight  # as torch.nn.Linear of the slice
    assert SLICE**-0.5 * 0.7 < weight.abs().max() <= SLICE**-0.5
    assert HeadGate(WIDTH, HEADS, "mlp", hidden_dim=3).layers[0].weight.shape == (HEADS, 3, SLICE)


@pytest.mark.parametrize("kind", KINDS)
def test_fine_tuning_starts_from_the_ungated_model(kind: str) -> None:
    plain = MultiHeadAttention(WIDTH, HEADS)
    options = {"init": 0.25, "fine_tune": True}
    layer = HeadGatedAttention(WIDTH, HEADS, gate=kind, gate_options=options)
    layer.load_state_dict(plain.state_dict(), strict=False)
    hidden = torch.randn(2, 7, WIDTH)
    expected, output = plain(hidden, is_causal=False), layer(hidden, is_causal=False)
    assert (output - expected).abs().max() < 0.1 * expected.abs().max()
    assert (layer.gate_scores(hidden) - 1).abs().max() < 0.15  # weights are N(0, 0.01²), not 0


def test_an_unconditional_gate_scales_attention() -> None:
    plain = MultiHeadAttention(WIDTH, HEADS)
    layer = HeadGatedAttention(WIDTH, HEADS, gate="unconditional")
    layer.load_state_dict(plain.state_dict(), strict=False)
    torch.nn.init.constant_(layer.gate.logit, 0.7)
    hidden = torch.randn(2, 7, WIDTH)
    torch.testing.assert_close(layer(hidden), torch.tensor(0.7).sigmoid() * plain(hidden))


def test_a_head_sees_its_own_slice_only() -> None:
    hidden = torch.randn(1, 5, WIDTH)
    other = hidden.clone()
    other[..., SLICE : 2 * SLICE] += 1
    for kind in ("linear", "mlp", "mlp2"):
        gate = HeadGate(WIDTH, HEADS, kind)
        changed = (gate(hidden) != gate(other)).flatten(2).any(-1)[0]
        assert changed.tolist() == [False, True, False, False]


def test_per_head_leaks_and_so_refuses_causal_calls() -> None:
    hidden = torch.randn(1, 5, WIDTH)
    gate = HeadGate(WIDTH, HEADS, "per_head")
    with pytest.raises(ArgumentValueError, match="is_causal must be False"):
        gate(hidden)
    layer = HeadGatedAttention(WIDTH, HEADS, gate="per_head")
    with pytest.raises(ArgumentValueError, match="is_causal must be False"):
        layer(hidden)
    leaky = HeadGatedAttention(WIDTH, HEADS, gate="per_head", gate_options={"allow_leak": True})
    changed = hidden.clone()
    changed[:, -1] += 1
    assert (leaky(hidden)[:, 0] - leaky(changed)[:, 0]).abs().max() > 0
    with pytest.raises(ArgumentValueError, match="cache"):
        leaky(hidden, cache=KVCache(4))
    safe = HeadGatedAttention(WIDTH, HEADS, gate="linear")
    torch.testing.assert_close(safe(hidden)[:, :-1], safe(changed)[:, :-1])


@pytest.mark.parametrize("kind", ["linear", "mlp", "all_features", "unconditional"])
@torch.no_grad()
def test_decoding_with_a_cache_is_the_causal_call(kind: str) -> None:
    layer = HeadGatedAttention(WIDTH, HEADS, 2, gate=kind, rope=10000.0).double()
    hidden = torch.randn(2, 9, WIDTH, dtype=torch.float64)
    cache = KVCache(capacity=2)
    pieces = [layer(piece, cache=cache) for piece in hidden.split(2, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), layer(hidden))


def test_gradients_and_half_precision() -> None:
    layer = HeadGatedAttention(8, 2, gate="mlp", gate_options={"hidden_dim": 3}).double()
    hidden = torch.randn(1, 3, 8, dtype=torch.float64, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (hidden, *values))
    half = layer.bfloat16()
    assert half(hidden.detach().bfloat16()).dtype is torch.bfloat16
    assert half.gate(hidden.detach().bfloat16()).dtype is torch.float32


def test_in_a_gpt_and_with_clipped_softmax() -> None:
    options = {
        "gate": "linear",
        "rope": 10000.0,
        "attention": "clipped_softmax",
        "attention_options": {"alpha": 2.0, "max_seq_len": 6},
    }
    model = GPT(GPTConfig(8, 2, 2, 16, attention=HeadGatedAttention, attention_options=options))
    tokens = torch.randint(8, (2, 6))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens), model(tokens))
    report = attention_sink(model, tokens)
    assert report["gate_mean"] == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize(
    ("args", "options", "error", "word"),
    [
        ((30, 4), {}, ArgumentValueError, "embed_dim"),
        ((12, 4, "mlp"), {}, ArgumentValueError, "4 features per head"),
        ((32, 4, "cubic"), {}, ArgumentValueError, "kind"),
        ((32, 4, 3), {}, ArgumentTypeError, "kind"),
        ((32, 0), {}, ArgumentValueError, "num_heads"),
        ((32.0, 4), {}, ArgumentTypeError, "embed_dim"),
        ((32, 4, "linear", 0.0), {}, ArgumentValueError, "init"),
        ((32, 4, "linear", 1.0), {}, ArgumentValueError, "init"),
        ((32, 4, "linear", "0.5"), {}, ArgumentTypeError, "init"),
        ((32, 4), {"fine_tune": 1}, ArgumentTypeError, "fine_tune"),
        ((32, 4), {"allow_leak": "no"}, ArgumentTypeError, "allow_leak"),
        ((32, 4), {"hidden_dim": 3}, ArgumentValueError, "hidden_dim"),
        ((32, 4, "mlp"), {"hidden_dim": 0}, ArgumentValueError, "hidden_dim"),
        ((32, 4, "mlp"), {"hidden_dim": 2.0}, ArgumentTypeError, "hidden_dim"),
    ],
)
def test_bad_input(args: tuple[object, ...], options: dict[str, object], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        HeadGate(*args, **options)  # type: ignore[arg-type]


def test_bad_hidden_states() -> None:
    gate = HeadGate(WIDTH, HEADS)
    for hidden in (torch.zeros(2, WIDTH), torch.zeros(2, 3, 8)):
        with pytest.raises(ArgumentValueError, match="hidden"):
            gate(hidden)
    with pytest.raises(ArgumentTypeError, match="hidden"):
        gate(torch.zeros(2, 3, WIDTH, dtype=torch.long))
    with pytest.raises(ArgumentTypeError, match="is_causal"):
        gate(torch.zeros(2, 3, WIDTH), None)
