"""The pieces of instruction-aware prompts: pool, generator, configuration, masks and rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.models import IAPTConfig, PromptGenerator, SelfAttentionPool
from softgate.models.iapt.adapter import PromptAdapter
from softgate.models.iapt.prefix import Prefix, _extended
from softgate.models.iapt.selection import adapters_of_rows, instruction_of, select

MASK = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)


def test_the_pool_is_softmax_over_positions() -> None:
    pool, h = SelfAttentionPool(3, 2), torch.randn(2, 4, 3)
    for row in range(2):
        kept = h[row][MASK[row]]
        expected = torch.softmax(kept @ pool.weight, dim=0).T @ kept
        torch.testing.assert_close(pool(h, MASK)[row], expected)
    weights = pool.weights(h, MASK)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 2))
    assert not weights[~MASK].any()


def test_the_pool_knows_no_order_and_no_masked_position() -> None:
    pool, h = SelfAttentionPool(3, 2), torch.randn(2, 4, 3)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(pool(h[:, order], MASK[:, order]), pool(h, MASK))
    other = h.clone()
    other[~MASK] = float("nan")
    assert torch.equal(pool(other, MASK), pool(h, MASK))
    other[0, 1, 0] = float("nan")
    assert pool(other, MASK)[0].isnan().any() and torch.equal(pool(other, MASK)[1], pool(h, MASK)[1])


def test_equal_queries_give_equal_prompts() -> None:
    generator = PromptGenerator(6, bottleneck=3, num_tokens=4)
    with torch.no_grad():
        generator.pool.weight.copy_(generator.pool.weight[:, :1].expand(-1, 4))
    prompts = generator(torch.randn(2, 4, 6), MASK)
    torch.testing.assert_close(prompts, prompts[:, :1].expand(-1, 4, -1))


def test_the_generator_is_down_pool_activate_up() -> None:
    generator, h = PromptGenerator(6, bottleneck=3), torch.randn(2, 4, 6)
    z = h @ generator.down.weight.T + generator.down.bias
    pooled = generator.activation(generator.pool(z, MASK))
    torch.testing.assert_close(generator(h, MASK), pooled @ generator.up.weight.T + generator.up.bias)


def test_half_precision_is_computed_in_float32() -> None:
    generator, h = PromptGenerator(6, bottleneck=3), torch.randn(2, 4, 6).bfloat16()
    assert torch.equal(generator(h, MASK), generator(h.float(), MASK).bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(generator(h.float(), MASK), generator(h.float(), MASK))
    assert PromptGenerator(6, bottleneck=3).bfloat16()(h, MASK).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("share", "expected"),
    [("none", 3 * (2 * 8 * 4 + 4 + 8)), ("all", 2 * 8 * 4 + 4 + 8), (2, 2 * (2 * 8 * 4 + 4 + 8))],
)
def test_parameters_are_those_of_the_formula(share: str | int, expected: int) -> None:
    adapter = PromptAdapter(IAPTConfig(bottleneck=4, num_tokens=5, share=share), 8, 3)
    own = 3 * (4 * 5 + 5 + 4 + 1)  # queries and activation are never shared
    assert sum(p.numel() for p in adapter.parameters()) == expected + own
    static = PromptAdapter(IAPTConfig(num_tokens=5, prompt="static", layers=[0, 2]), 8, 3)
    assert sum(p.numel() for p in static.parameters()) == 2 * 5 * 8 and static.generator(1) is None


def test_what_learns() -> None:
    def learning(training: str) -> set[str]:
        adapter = PromptAdapter(IAPTConfig(bottleneck=4, activation_training=training), 8, 1)
        return {name.split(".")[2] for name, p in adapter.named_parameters() if p.requires_grad}

    assert learning("joint") == {"down", "pool", "activation", "up"}
    assert learning("fixed") == learning("bilevel") == {"down", "pool", "up"}
    with pytest.raises(ArgumentValueError, match="part"):
        PromptAdapter(IAPTConfig(), 8, 1).learn("half")


def test_configurations_come_back_from_json() -> None:
    config = IAPTConfig(bottleneck=3, layers=[2, 0], share=2, activation="tanh")
    assert config.layers == (0, 2) and IAPTConfig.from_json(config.as_json()) == config
    with pytest.raises(ArgumentValueError, match="depth"):
        IAPTConfig.from_json({"depth": 3})
    with pytest.raises(ArgumentValueError, match="below the model's 2 layers"):
        config.layer_indices(2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_tokens": 0}, "num_tokens"), ({"bottleneck": 0}, "bottleneck"), ({"bottleneck": 2.0}, "bottleneck"),
        ({"share": "some"}, "share"), ({"share": 0}, "share"), ({"layers": "first"}, "layers"),
        ({"layers": []}, "layers"), ({"layers": [1, 1]}, "layers"), ({"layers": [-1]}, "layers"),
        ({"layers": 1}, "layers"),
        ({"activation": "sin"}, "activation"), ({"degrees": (-1, 2)}, "degrees"), ({"version": "D"}, "version"),
        ({"activation_init": "sin"}, "init"), ({"activation_training": "both"}, "activation_training"),
        ({"prompt": "none"}, "prompt"),
    ],
)  # fmt: skip
def test_bad_configurations(options: dict[str, Any], words: str) -> None:
    with pytest.raises((ArgumentValueError, ArgumentTypeError), match=words):
        IAPTConfig(**options)


def test_bad_sequences_and_masks() -> None:
    generator, h = PromptGenerator(6, bottleneck=3), torch.randn(2, 4, 6)
    for bad in (h[0], h[:, :0], h[..., :5]):
        with pytest.raises(ArgumentValueError, match="h must be"):
            generator(bad)
    with pytest.raises(ArgumentTypeError, match="h must"):
        generator(h.long())
    with pytest.raises(ArgumentValueError, match="at least one position"):
        generator(h, MASK & torch.tensor([[True], [False]]))
    with pytest.raises(ArgumentTypeError, match="mask must be a bool"):
        generator(h, MASK.long())
    with pytest.raises(ArgumentValueError, match="mask must be"):
        generator(h, MASK[:, :3])
    with pytest.raises(ArgumentValueError, match="share"):
        PromptGenerator(6, bottleneck=4, share=generator)


def test_which_tokens_are_the_instruction() -> None:
    ids, ones = torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.bool)
    assert torch.equal(instruction_of(None, None, None, ids), ones)
    assert torch.equal(instruction_of(None, MASK.long(), None, ids), MASK)
    labels = torch.tensor([[-100, -100, 5, -100], [-100, 5, 5, 5]])
    before = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    assert torch.equal(instruction_of(None, None, labels, ids), before)
    assert torch.equal(instruction_of(None, MASK, labels, ids), before & MASK)
    given = torch.tensor([[1, 0, 1, 0]])  # one row stands for the beams of one prompt
    assert torch.equal(instruction_of(given, None, labels, ids), given.bool().expand(2, -1))
    for bad in (torch.ones(2, 4), [[1, 1, 1, 1]]):
        with pytest.raises(ArgumentTypeError, match="instruction_mask"):
            instruction_of(bad, None, None, ids)
    for bad in (torch.ones(2, 3, dtype=torch.long), torch.ones(3, 4, dtype=torch.long)):
        with pytest.raises(ArgumentValueError, match="instruction_mask"):
            instruction_of(bad, None, None, ids)
    with pytest.raises(ArgumentValueError, match="instruction_mask must be given"):
        instruction_of(None, torch.ones(2, 1, 4, 4), None, ids)


def test_which_rows_get_which_prompts() -> None:
    assert adapters_of_rows(None, "a", {"a"}, 2) == ["a", "a"]
    assert adapters_of_rows(["a", None], "a", {"a"}, 4) == ["a", "a", None, None]
    with pytest.raises(ArgumentValueError, match=r"adapter_names.*'c'"):
        adapters_of_rows(["c"], "a", {"a"}, 1)
    for bad in ("a", 3):
        with pytest.raises(ArgumentTypeError, match="adapter_names"):
            adapters_of_rows(bad, "a", {"a"}, 1)
    with pytest.raises(ArgumentValueError, match="adapter_names"):
        adapters_of_rows(["a", "a"], "a", {"a"}, 3)
    with pytest.raises(ArgumentValueError, match=r"rows \[1\]"):
        select(MASK & torch.tensor([[True], [False]]), ["a", "a"])
    assert select(MASK & torch.tensor([[True], [False]]), ["a", None]) is not None
    assert select(MASK, [None, None]) is None


@pytest.mark.parametrize("visible", [None, torch.tensor([[1, 1], [1, 0]], dtype=torch.bool)], ids=["all", "some"])
def test_masks_get_columns_for_the_prefix(visible: Any) -> None:
    prefix = Prefix(torch.zeros(2, 1, 2, 3), torch.zeros(2, 1, 2, 3), visible)
    hidden = torch.zeros(2, 3, 5)
    seen = torch.ones(2, 2, dtype=torch.bool) if visible is None else visible
    causal = torch.ones(3, 3, dtype=torch.bool).tril()
    expected = torch.cat((seen[:, None, None].expand(-1, 1, 3, -1), causal.expand(2, 1, 3, 3)), -1)
    additive = torch.zeros(2, 1, 3, 3).masked_fill(~causal, torch.finfo(torch.float32).min)
    for mask in (None, causal[None, None], causal.expand(2, 1, 3, 3)):
        assert torch.equal(_extended(mask, prefix, hidden, "sdpa").expand(2, -1, -1, -1), expected)
    assert torch.equal(_extended(additive, prefix, hidden, "eager") == 0, expected)
    flat = _extended(torch.ones(2, 3, dtype=torch.long), prefix, hidden, "flash_attention_2")
    assert torch.equal(flat, torch.cat((seen.long(), torch.ones(2, 3, dtype=torch.long)), 1))
    alone = _extended(None, prefix, hidden, "flash_attention_2")
    assert alone is None if visible is None else torch.equal(alone, flat)
    assert (_extended(None, prefix, hidden[:, :1], "sdpa") is None) == (visible is None)
    with pytest.raises(RuntimeError, match="sdpa"):
        _extended(object(), prefix, hidden, "flex_attention")
