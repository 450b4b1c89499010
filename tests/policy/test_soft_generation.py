"""Decoding with soft thoughts, and scoring what was decoded, on a tiny Llama."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.policy import SoftRollout, SoftSampling, SoftThinkingGenerator, rollout_log_prob, soft_embedding

transformers = pytest.importorskip("transformers")

END_THINK, EOS, PAD, VOCABULARY = 3, 2, 0, 16


@pytest.fixture
def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def thinker(model: Any, **options: Any) -> SoftThinkingGenerator:
    settings: dict[str, Any] = {"max_think": 6, "max_answer": 5, **options}
    return SoftThinkingGenerator(model, end_think_id=END_THINK, eos_id=EOS, pad_id=PAD, **settings)


def prompts(rows: int, length: int = 4) -> Tensor:
    return torch.randint(4, VOCABULARY, (rows, length))


def naive_steps(model: Any, prompt: Tensor, token: Any) -> Tensor:
    """Logits before every step, each from the whole sequence of embeddings."""
    table = model.get_input_embeddings().weight
    inputs = [table[prompt], soft_embedding(token, table)[:, :-1]]
    return model(inputs_embeds=torch.cat(inputs, 1)).logits[:, prompt.shape[1] - 1 :]


def test_a_response_thinks_first_and_answers_then(llama: Any) -> None:
    rollout = thinker(llama).generate(prompts(64), generator=torch.Generator().manual_seed(1))
    assert rollout.ids.shape == rollout.completion_mask.shape == rollout.token.is_soft.shape
    lengths = set()
    for ids, soft, real, action in zip(
        rollout.ids, rollout.token.is_soft, rollout.completion_mask, rollout.action_mask, strict=True
    ):
        thoughts, length = int(soft.sum()), int(real.sum())
        assert bool(soft[:thoughts].all()) and bool(real[:length].all())
        assert ids[thoughts] == END_THINK and END_THINK not in ids[:thoughts]
        answer = ids[thoughts + 1 : length]
        assert EOS not in answer[:-1] and (len(answer) == 5 or answer[-1] == EOS)
        assert bool((ids[length:] == PAD).all())
        # only an end of thinking after the last possible thought was not the policy's choice
        assert (real & ~action).nonzero().flatten().tolist() == ([6] if thoughts == 6 else [])
        lengths.add(thoughts)
    assert len(lengths) > 2


def test_thoughts_of_a_fixed_length(llama: Any) -> None:
    rollout = thinker(llama, min_think=3, max_think=3, max_answer=1).generate(prompts(40))
    assert rollout.ids.shape == (40, 5)
    assert rollout.token.is_soft.tolist() == [[True] * 3 + [False] * 2] * 40
    assert rollout.action_mask.tolist() == [[True] * 3 + [False, True]] * 40


def test_cached_decoding_is_the_argmax_of_whole_sequences(llama: Any) -> None:
    prompt = prompts(8)
    sampling = SoftSampling(noise_scale=0.0, tau=0.7, answer_k=1)
    rollout = thinker(llama, sampling=sampling).generate(prompt)
    with torch.no_grad():
        logits = naive_steps(llama, prompt, rollout.token)
    own = rollout.action_mask
    assert torch.equal(logits.argmax(-1)[own], rollout.ids[own])
    soft = rollout.token.is_soft
    expected = torch.where(rollout.token.kept, logits.gather(-1, rollout.token.ids), -torch.inf).softmax(-1)
    torch.testing.assert_close(rollout.token.g[soft].exp(), expected[soft] + 1e-6, rtol=1e-3, atol=1e-5)


def test_padding_on_the_left_changes_nothing(llama: Any) -> None:
    prompt = prompts(3, 5)
    sampling = SoftSampling(noise_scale=0.0, answer_k=1)
    alone = thinker(llama, sampling=sampling).generate(prompt)
    padded = torch.cat((torch.zeros(3, 2, dtype=torch.long), prompt), 1)
    mask = (torch.arange(7) >= 2).expand(3, 7)
    together = thinker(llama, sampling=sampling).generate(padded, mask)
    assert torch.equal(alone.ids, together.ids)
    torch.testing.assert_close(alone.token.weights, together.token.weights, rtol=1e-3, atol=1e-4)
    a = rollout_log_prob(llama, prompt, alone.token, alone.completion_mask, sampling=SoftSampling())
    b = rollout_log_prob(llama, padded, alone.token, alone.completion_mask, mask, sampling=SoftSampling())
    real = alone.completion_mask
    torch.testing.assert_close(a[real], b[real], rtol=1e-3, atol=1e-4)


def scored(llama: Any, reduce: str = "mean") -> tuple[Tensor, SoftRollout, Tensor]:
    prompt = prompts(6)
    rollout = thinker(llama).generate(prompt)
    log_p = rollout_log_prob(llama, prompt, rollout.token, rollout.completion_mask, reduce=reduce)
    return log_p, rollout, prompt


@pytest.mark.parametrize("capped", [False, True])
def test_scores_are_those_of_whole_sequences(llama: Any, capped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With logits that the model caps after its output layer, the rows of that layer would not be enough."""
    if capped:
        forward = llama.forward

        def cap(*args: Any, **kwargs: Any) -> Any:
            out = forward(*args, **kwargs)
            out.logits = 5 * torch.tanh(out.logits / 5)
            return out

        monkeypatch.setattr(llama, "forward", cap)
    log_p, rollout, prompt = scored(llama)
    expected = SoftSampling().log_prob(naive_steps(llama, prompt, rollout.token), None, rollout.token)
    real = rollout.completion_mask
    torch.testing.assert_close(log_p[real], expected[real], rtol=1e-4, atol=1e-4)


def test_the_table_gets_no_gradient_through_the_thoughts(llama: Any) -> None:
    log_p, rollout, prompt = scored(llama)
    (log_p * rollout.action_mask).sum().backward()
    gradient = llama.get_input_embeddings().weight.grad
    seen = torch.zeros(VOCABULARY, dtype=torch.bool)
    seen[prompt.flatten()] = True
    assert bool((gradient[~seen] == 0).all()) and float(gradient[seen].abs().max()) > 0
    assert float(llama.lm_head.weight.grad.abs().max()) > 0


def test_bad_settings(llama: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="max_think"):
        thinker(llama, max_think=1.5)
    with pytest.raises(ArgumentValueError, match="max_answer"):
        thinker(llama, max_answer=0)
    with pytest.raises(ArgumentValueError, match="min_think"):
        thinker(llama, min_think=7)
    with pytest.raises(ArgumentValueError, match="input_ids"):
        thinker(llama).generate(torch.zeros(3, 0, dtype=torch.long))
    with pytest.raises(ArgumentValueError, match="attention_mask"):
        thinker(llama).generate(prompts(2), torch.ones(2, 3))
    log_p, rollout, prompt = scored(llama)
    assert log_p.shape == rollout.ids.shape
    with pytest.raises(ArgumentTypeError, match="token"):
        rollout_log_prob(llama, prompt, rollout.ids, rollout.completion_mask)
    with pytest.raises(ArgumentValueError, match="input_ids"):
        rollout_log_prob(llama, prompt[:2], rollout.token, rollout.completion_mask)


def test_a_model_in_training_thinks_in_evaluation_mode(llama: Any) -> None:
    llama.activation_checkpointing_enable()
    llama.train()
    rollout = thinker(llama).generate(prompts(2))
    assert llama.training and rollout.token.is_soft.any()
