"""The small GPT: shapes, causality, cache, parts given by name or callable, gradients, compile, errors."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from softgate.attention import GatedAttention
from softgate.errors import SoftgateError
from softgate.models import GPT, GPTConfig

SMALL = {"vocab_size": 23, "num_layers": 2, "num_heads": 4, "embed_dim": 32}


def make(**changes: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**SMALL, **changes}))


def tokens(batch: int = 2, length: int = 9) -> Tensor:
    return torch.randint(0, SMALL["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(1))


def sdpa(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    """torch's attention with bottom-right causality, as a caller would pass it."""
    if options.pop("is_causal", False):
        rows, columns = query.shape[-2], key.shape[-2]
        causal = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
        attn_mask = causal if attn_mask is None else attn_mask & causal
    return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask, **options)


VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "gqa": {"num_kv_heads": 2},
    "mqa-qk-norm": {"num_kv_heads": 1, "qk_norm": True},
    "gated": {"attention": "gated"},
    "gated-headwise": {"attention": "gated", "attention_options": {"granularity": "headwise"}},
    "gated-value": {"attention": "gated", "attention_options": {"gate_position": "value"}, "num_kv_heads": 2},
    "callable": {"attention": sdpa},
    "module": {"attention": functools.partial(GatedAttention, gate_position="output")},
    "mlp-relu": {"ffn": "mlp", "activation": "relu"},
    "tied": {"tied_head": True},
    "no-positions": {"rope": None, "bias": True},
    "learned-positions": {"rope": None, "learned_positions": 32},
    "wide-heads": {"head_dim": 16, "hidden_dim": 24, "activation": nn.Tanh},
}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> GPT:
    return make(**VARIANTS[request.param]).eval()


def test_forward_returns_logits_and_the_mean_loss(variant: GPT) -> None:
    x = tokens()
    targets = x.roll(-1, 1)
    targets[:, -1] = -100
    logits, loss = variant(x, targets)
    assert logits.shape == (2, 9, 23)
    torch.testing.assert_close(logits, variant(x))
    by_hand = -logits.double().log_softmax(-1)[:, :-1].gather(-1, targets[:, :-1, None]).mean()
    torch.testing.assert_close(loss.double(), by_hand, rtol=1e-6, atol=1e-6)


def test_a_new_model_guesses_uniformly() -> None:
    _, loss = make()(tokens(8, 32), tokens(8, 32).roll(-1, 1))
    assert abs(loss.item() - math.log(23)) < 0.1


def test_no_position_sees_the_future(variant: GPT) -> None:
    x, changed = tokens(), tokens()
    changed[:, 5:] = (changed[:, 5:] + 1) % 23
    before, after = variant(x), variant(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax() > 1e-4


@pytest.mark.parametrize("chunks", [(1,) * 9, (4, 1, 4), (9,)])
@torch.no_grad()
def test_decoding_with_the_cache_equals_full_recomputation(variant: GPT, chunks: tuple[int, ...]) -> None:
    x = tokens()
    cache = variant.new_cache(capacity=2)
    pieces = [variant(piece, cache=cache) for piece in x.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), variant(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 0.8}, {"top_k": 3}], ids=str)
def test_generating_with_and_without_cache_gives_the_same_tokens(variant: GPT, options: dict[str, Any]) -> None:
    prompt = tokens(2, 3)
    results = [
        variant.generate(prompt, 12, generator=torch.Generator().manual_seed(5), cache=cache, **options)
        for cache in ("kv", "none")
    ]
    assert results[0].shape == (2, 15)
    assert torch.equal(results[0][:, :3], prompt)
    assert torch.equal(*results)


def test_top_k_draws_only_from_the_k_most_probable() -> None:
    model = make().eval()
    with torch.no_grad():
        allowed = model(tokens(1, 4))[:, -1].topk(2).indices.flatten().tolist()
    drawn = {int(model.generate(tokens(1, 4), 1, top_k=2, temperature=50.0)[0, -1]) for _ in range(40)}
    assert drawn == set(allowed)


def test_generate_keeps_the_mode_of_the_model() -> None:
    model = make(dropout=0.5).train()
    greedy = [model.generate(tokens(1, 4), 5, temperature=0.0) for _ in range(2)]
    assert model.training
    assert torch.equal(*greedy)


def test_every_parameter_gets_a_gradient(variant: GPT) -> None:
    _, loss = variant(tokens(), tokens().roll(-1, 1))
    loss.backward()
    without = [name for name, p in variant.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_rotation_makes_attention_depend_on_distance_only() -> None:
    model = make().eval()
    attention = model.blocks[0].attention
    hidden = torch.randn(1, 6, 32)
    moved = attention(hidden, positions=torch.arange(100, 106))
    torch.testing.assert_close(attention(hidden), moved, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["stablemax", "stablemax_cross_entropy", "collapse_free"])
def test_losses_of_the_room_by_name(name: str) -> None:
    losses = pytest.importorskip("softgate.losses")
    full = name if name.endswith("_cross_entropy") else f"{name}_cross_entropy"
    if full not in losses.__all__:
        pytest.skip(f"softgate.losses has no {full} yet")
    x = tokens()
    logits, loss = make(loss=name)(x, x.roll(-1, 1))
    torch.testing.assert_close(loss, getattr(losses, full)(logits.flatten(0, 1), x.roll(-1, 1).flatten()))


def test_sizes_and_initialisation() -> None:
    model, tied = make(num_layers=8), make(num_layers=8, tied_head=True)
    assert tied.head.weight is tied.embedding.weight
    assert model.num_parameters() - tied.num_parameters() == 23 * 32
    assert model.num_parameters(embeddings=False) == tied.num_parameters()
    # 2 norms, q, k, v, o, and three feed-forward matrices of 8 ceil(8/3 * 32 / 8) = 88 columns, per block
    assert model.num_parameters() == 8 * (2 * 32 + 4 * 32 * 32 + 3 * 32 * 88) + 32 + 2 * 23 * 32
    for block in model.blocks:
        assert abs(block.attention.o_proj.weight.std().item() / (0.02 / 4) - 1) < 0.1
        assert abs(block.ffn.w_out.weight.std().item() / (0.02 / 4) - 1) < 0.1
        assert abs(block.ffn.w_in.weight.std().item() / 0.02 - 1) < 0.1


def test_saved_weights_give_the_same_logits() -> None:
    model, other = make(), GPT(GPTConfig(**SMALL))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(tokens()), other.eval()(tokens()))


@pytest.mark.parametrize("name", ["softmax", "gqa", "gated", "callable"])
def test_compiles_without_a_graph_break(name: str) -> None:
    torch._dynamo.reset()
    model = make(**VARIANTS[name])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = tokens()
    torch.testing.assert_close(compiled(x, x.roll(-1, 1))[1], model(x, x.roll(-1, 1))[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be a positive int, got 0"),
        ({"num_layers": 1.5}, "num_layers must be a positive int, got float"),
        ({"num_layers": True}, "num_layers must be a positive int, got bool"),
        ({"num_kv_heads": 3}, "num_kv_heads must be a divisor of num_heads=4, got 3"),
        ({"num_kv_heads": 8}, "num_kv_heads must be a divisor"),
        ({"embed_dim": 30}, "embed_dim must be a multiple of num_heads=4"),
        ({"head_dim": 5}, "head_dim must be even"),
        ({"hidden_dim": -1}, "hidden_dim must be a positive int"),
        ({"ffn": "swiglu"}, "ffn must be one of 'glu', 'mlp'"),
        ({"attention": "sofmax"}, "attention must be one of 'softmax'"),
        ({"attention": 3}, "attention must be a name, a callable or a module class"),
        ({"activation": "rellu"}, "activation must be one of 'silu'"),
        ({"activation": 3}, "activation must be a name or a callable"),
        ({"loss": "crossentropy"}, "loss must be one of 'cross_entropy'"),
        ({"loss": None}, "loss must be a name or a callable"),
        ({"dropout": 1.0}, "dropout must be a number in"),
        ({"dropout": "0.1"}, "dropout must be a real number"),
        ({"norm_eps": 0.0}, "norm_eps must be a number in"),
        ({"rope": -1.0}, "base must be a number in"),
        ({"learned_positions": 0}, "learned_positions must be a positive int"),
        ({"qk_norm": "yes"}, "qk_norm must be"),
    ],
)
def test_bad_configurations_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SoftgateError, match=message.replace("(", r"\(")):
        make(**changes)


def test_bad_calls_are_named() -> None:
    model = make()
    calls: list[tuple[Any, str]] = [
        (lambda: model(tokens().float()), "tokens must be integers"),
        (lambda: model(tokens()[0]), r"tokens must be integers of shape \(B, T\)"),
        (lambda: model(tokens(), tokens()[:, :3]), "targets must have the shape of tokens"),
        (lambda: model(tokens(), cache=model.new_cache()[:1]), "cache must have one entry for each of 2 layers"),
        (lambda: model.generate(tokens(), -1), "max_new_tokens must be a non-negative int"),
        (lambda: model.generate(tokens(), 1, temperature=-0.1), "temperature must be a number in"),
        (lambda: model.generate(tokens(), 1, top_k=0), "top_k must be None or an int between 1 and"),
        (lambda: model.generate(tokens(), 1, top_k=24), "top_k must be None or an int between 1 and"),
        (lambda: model.generate(tokens()[:, :0], 1), r"tokens must be of shape \(B, T\)"),
        (lambda: model.generate(tokens(), 1, cache="yes"), "cache must be one of"),
    ]
    for call, message in calls:
        with pytest.raises(SoftgateError, match=message):
            call()


def test_learned_positions_bound_the_length() -> None:
    model = make(rope=None, learned_positions=4).eval()
    cache = model.new_cache()
    model(torch.zeros(1, 3, dtype=torch.long), cache=cache)
    model(torch.zeros(1, 1, dtype=torch.long), cache=cache)
    with pytest.raises(SoftgateError, match="tokens must end within the 4 learned positions, got length 5"):
        model(torch.zeros(1, 1, dtype=torch.long), cache=cache)
