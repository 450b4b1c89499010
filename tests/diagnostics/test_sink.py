"""attention_sink: figures with known values, our modules, the lab's GPT and transformers models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from softgate.attention import GatedAttention
from softgate.diagnostics import attention_sink, record_attention
from softgate.errors import SoftgateError
from softgate.models import GPT, GPTConfig

TOKENS = torch.arange(24).view(2, 12) % 16


def gpt(**options: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=16, num_layers=3, num_heads=4, embed_dim=16, num_kv_heads=2, **options))


class Fixed(nn.Module):
    """An attention whose weights are given."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden

    def attention_weights(self, hidden: Tensor) -> Tensor:
        return self.weights.expand(hidden.shape[0], 1, -1, -1)


def test_uniform_attention_has_the_harmonic_share() -> None:
    model = gpt(attention="gated", rope=None)
    for block in model.blocks:
        nn.init.zeros_(block.attention.q_proj.weight)
    report = attention_sink(model, TOKENS)
    expected = sum(1 / n for n in range(2, 13)) / 11
    assert report["first_token_share"] == pytest.approx(expected, rel=1e-5)
    assert report["per_layer"] == pytest.approx([expected] * 3, rel=1e-5)


@pytest.mark.parametrize(("column", "expected"), [(0, 1.0), (1, 0.0)])
def test_query_zero_does_not_count(column: int, expected: float) -> None:
    weights = torch.zeros(4, 4)
    weights[0, 0] = 1.0
    weights[1:, column] = 1.0
    assert attention_sink(Fixed(weights), torch.zeros(2, 4, 3))["first_token_share"] == expected


def test_first_valid_token_counts_under_padding() -> None:
    weights = torch.zeros(4, 4)
    weights[:, 1] = 1.0
    valid = torch.tensor([[False, True, True, True], [True, True, True, False]])
    report = attention_sink(Fixed(weights), torch.zeros(2, 4, 3), valid=valid)
    assert report["first_token_share"] == pytest.approx(0.5)  # two queries of the first row, two of the second


def test_max_activation_is_the_mean_over_layers_of_the_largest() -> None:
    model = gpt(attention="gated")
    hidden = [record.hidden for record in record_attention(model, TOKENS)]
    outputs: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _m, _a, out: outputs.append(out)) for block in model.blocks]
    with torch.no_grad():
        model(TOKENS)
    for hook in hooks:
        hook.remove()
    assert all(torch.equal(a, b) for a, b in zip(hidden, outputs, strict=True))
    expected = sum(float(out.abs().max()) for out in outputs) / 3
    assert attention_sink(model, TOKENS)["max_activation"] == pytest.approx(expected)
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[:, 6:] = False
    expected = sum(float(out[:, :6].abs().max()) for out in outputs) / 3
    assert attention_sink(model, TOKENS, valid=valid)["max_activation"] == pytest.approx(expected)


def test_gates() -> None:
    model = gpt(attention="gated", attention_options={"granularity": "headwise"})
    scores: list[Tensor] = []
    for block in model.blocks:
        block.attention.gate_proj.register_forward_hook(lambda _m, _a, out: scores.append(out.sigmoid()))
    with torch.no_grad():
        model(TOKENS)
    expected = torch.cat([s.flatten() for s in scores])
    report = attention_sink(model, TOKENS)
    assert report["gate_mean"] == pytest.approx(float(expected.mean()), abs=1e-6)
    assert len(report["gate_hist"]) == 20 and sum(report["gate_hist"]) == pytest.approx(1.0)
    counts = torch.histc(expected, 20, 0, 1) / len(expected)
    assert report["gate_hist"] == pytest.approx(counts.tolist())


def test_gates_outside_the_unit_interval_count_at_its_ends() -> None:
    model = gpt(attention="gated", attention_options={"activation": "identity"})
    for block in model.blocks:
        nn.init.normal_(block.attention.gate_proj.weight, std=10.0)
    report = attention_sink(model, TOKENS)
    assert report["gate_hist"][0] > 0.3 and report["gate_hist"][-1] > 0.3


@pytest.mark.parametrize("attention", ["softmax", "gated"])
def test_weights_are_those_of_the_forward_pass(attention: str) -> None:
    model = gpt(attention=attention)
    block = model.blocks[1].attention
    seen: dict[str, Tensor] = {}
    block.o_proj.register_forward_pre_hook(lambda _m, args: seen.update(inputs=args[0]))
    block.v_proj.register_forward_hook(lambda _m, _a, out: seen.update(values=out))
    record = record_attention(model, TOKENS)[1]
    assert record.name == "blocks.1.attention"
    values = seen["values"].view(2, 12, 2, 4).transpose(1, 2).repeat_interleave(2, 1)
    output = record.weights @ values * (1.0 if record.gate is None else record.gate)
    torch.testing.assert_close(output.transpose(1, 2).flatten(2), seen["inputs"])
    assert (record.gate is None) == (attention == "softmax")


def test_nothing_is_left_behind() -> None:
    model = gpt(attention="gated", dropout=0.5)
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    first, second = attention_sink(model, TOKENS), attention_sink(model, TOKENS)
    assert first == second  # dropout was off
    assert [module.training for module in model.modules()] == modes
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert all(p.grad is None for p in model.parameters())


def test_hooks_go_away_after_an_error() -> None:
    model = gpt(attention="gated")
    with pytest.raises(IndexError):
        attention_sink(model, torch.full((1, 4), 99))
    assert model.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_single_attention_module() -> None:
    report = attention_sink(GatedAttention(8, 2), {"hidden": torch.randn(2, 5, 8)})
    assert 0.0 < report["first_token_share"] < 1.0 and len(report["per_layer"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_transformers_models(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {
        "llama": lambda: transformers.LlamaConfig(**sizes, intermediate_size=32),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=16, n_embd=16, n_layer=2, n_head=2, n_positions=32),
        "bert": lambda: transformers.BertConfig(**sizes, intermediate_size=32),
    }[name]()
    model = transformers.AutoModel.from_config(config).eval()
    before = model.config._attn_implementation
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :4] = 0
    inputs = {"input_ids": TOKENS, "attention_mask": mask}
    report = attention_sink(model, inputs)
    assert model.config._attn_implementation == before and model.training is False
    assert len(report["per_layer"]) == 2 and 0.0 < report["first_token_share"] < 1.0
    assert report["gate_mean"] is None and report["gate_hist"] == []
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(**inputs, output_attentions=True, output_hidden_states=True)
    shares = [(w[0, :, 1:, 0].sum() + w[1, :, 5:, 4].sum()) / (2 * (11 + 7)) for w in output.attentions]
    assert report["per_layer"] == pytest.approx([float(s) for s in shares], rel=1e-5)
    first = output.hidden_states[1]
    records = record_attention(model, inputs)
    torch.testing.assert_close(records[0].hidden, first)


BAD: list[tuple[Any, Any, dict[str, Any], str]] = [
    (None, TOKENS, {}, "model"),
    ("gpt", TOKENS, {}, "model"),
    (nn.Linear(2, 2), torch.ones(1, 2), {}, "attention_weights"),
    (nn.Sequential(), TOKENS, {}, "attention_weights"),
    (gpt(), None, {}, "inputs"),
    (gpt(), [1, 2], {}, "inputs"),
    (gpt(), "text", {}, "inputs"),
    (gpt(), TOKENS[:, :1], {}, "two valid tokens"),
    (gpt(), TOKENS[:0], {}, "two valid tokens"),
    (gpt(), TOKENS.float(), {}, "tokens"),
    (gpt(), TOKENS[0], {}, "tokens"),
    (gpt(), TOKENS, {"valid": torch.ones(2, 12)}, "valid"),
    (gpt(), TOKENS, {"valid": torch.ones(2, 12, dtype=torch.long)}, "valid"),
    (gpt(), TOKENS, {"valid": [True]}, "valid"),
    (gpt(), TOKENS, {"valid": torch.ones(2, 11, dtype=torch.bool)}, "valid"),
    (gpt(), TOKENS, {"valid": torch.ones(12, dtype=torch.bool)}, "valid"),
    (gpt(), TOKENS, {"valid": torch.zeros(2, 12, dtype=torch.bool)}, "two valid tokens"),
    (gpt(), TOKENS, {"valid": torch.arange(12).expand(2, 12) == 11}, "two valid tokens"),
    (gpt(), {"tokens": TOKENS, "cache": gpt().new_cache()}, {}, "cache"),
    (Fixed(torch.ones(4, 5)), torch.zeros(2, 4, 3), {}, "weights"),
]


@pytest.mark.parametrize(("model", "inputs", "options", "word"), BAD, ids=range(len(BAD)))
def test_bad_arguments(model: Any, inputs: Any, options: dict[str, Any], word: str) -> None:
    with pytest.raises(SoftgateError, match=word):
        attention_sink(model, inputs, **options)
