"""A transformed utility inside ``generate`` of a tiny random causal language model."""

from __future__ import annotations

import pytest
import torch

from softgate.integrations.utility_decoding import utility_logits_processor
from softgate.losses import UtilityTransform

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # what generate warns about is not ours


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, initializer_range=0.5, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def generate(model, transform: UtilityTransform | None, **options) -> torch.Tensor:
    torch.manual_seed(1)
    processors = [] if transform is None else [utility_logits_processor(transform)]
    prompt = torch.arange(1, 7).view(2, 3)
    return model.generate(prompt, max_new_tokens=8, logits_processor=processors, **options)


@pytest.mark.parametrize("transform", [("power", 3.0), ("noise_inverse", 0.1), ("rank", 2.0)], ids=lambda t: t[0])
def test_greedy_decoding_does_not_change(model, transform) -> None:
    assert torch.equal(
        generate(model, UtilityTransform(*transform), do_sample=False), generate(model, None, do_sample=False)
    )


def test_power_is_temperature(model) -> None:
    tempered = generate(model, None, do_sample=True, top_k=0, temperature=0.5)
    assert torch.equal(generate(model, UtilityTransform("power", 2.0), do_sample=True, top_k=0), tempered)
    assert not torch.equal(generate(model, None, do_sample=True, top_k=0), tempered)


def test_sharp_sampling_is_greedy(model) -> None:
    sharp = generate(model, UtilityTransform("power", float("inf")), do_sample=True, top_k=0)
    assert torch.equal(sharp, generate(model, None, do_sample=False))


def test_only_transforms_are_taken() -> None:
    with pytest.raises(TypeError, match="transform"):
        utility_logits_processor(lambda logits: logits)
