"""Language models whose loss comes without logits: the same loss and gradients, and the Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from softgate.errors import ArgumentTypeError, StateError
from softgate.integrations.fused_head import use_fused_loss
from softgate.losses import fused_linear_loss
from softgate.models import GPT, GPTConfig

TOKENS = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(0))


def tiny(name: str, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        pad_token_id=0, intermediate_size=24, bos_token_id=1, eos_token_id=2, initializer_range=0.2, **options,
    )  # fmt: skip
    return getattr(transformers, f"{name}ForCausalLM")(config).train()


def loss_and_gradients(model: nn.Module, **batch: Any) -> tuple[Any, list[torch.Tensor]]:
    output = model(input_ids=TOKENS, labels=TOKENS, **batch)
    return output, list(torch.autograd.grad(output.loss, list(model.parameters())))


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2", {"final_logit_softcapping": 2.0, "head_dim": 8}),
}


@pytest.mark.parametrize(("name", "options"), MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("batch", [{}, {"num_items_in_batch": 11}], ids=["mean", "items"])
def test_same_loss_and_gradients_without_logits(name, options, batch) -> None:
    model = tiny(name, **options)
    before, expected = loss_and_gradients(model, **batch)
    names = list(model.state_dict())
    handle = use_fused_loss(model)
    output, found = loss_and_gradients(model, **batch)
    assert output.logits is None
    torch.testing.assert_close(output.loss, before.loss)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    with handle.logits():
        torch.testing.assert_close(loss_and_gradients(model, **batch)[0].logits, before.logits)
    assert loss_and_gradients(model.eval())[0].logits is not None
    assert model.train()(input_ids=TOKENS).logits is not None  # nothing to compare with: logits are all there is
    assert list(model.state_dict()) == names
    with pytest.raises(StateError, match="already"):
        use_fused_loss(model)
    handle.remove()
    output, found = loss_and_gradients(model, **batch)
    assert torch.equal(output.loss, before.loss) and torch.equal(output.logits, before.logits)


def test_other_losses_and_tuples() -> None:
    model = tiny("Llama")
    hidden = model.model(TOKENS).last_hidden_state
    use_fused_loss(model, loss="comp_sum", tau=1.7)
    expected = fused_linear_loss(hidden, model.lm_head.weight, TOKENS, shift=1, loss="comp_sum", tau=1.7)
    loss, logits = model(input_ids=TOKENS, labels=TOKENS, return_dict=False)[:2]
    assert logits is None
    torch.testing.assert_close(loss, expected)


def test_models_that_cannot_are_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="model"):
        use_fused_loss(nn.Linear(2, 2))
    with pytest.raises(StateError, match="after the head"):
        use_fused_loss(tiny("Cohere"))


@pytest.mark.filterwarnings("ignore")  # what the Trainer warns about is not ours
def test_trainer_takes_two_steps(tmp_path) -> None:
    pytest.importorskip("accelerate")
    import transformers

    losses = []
    for fused in (False, True):
        model = tiny("Llama")
        if fused:
            use_fused_loss(model)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, learning_rate=1e-2, save_steps=2,
            report_to=[], use_cpu=True, seed=3, logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        rows = [{"input_ids": row, "labels": row} for row in TOKENS]
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        losses[-1].append(trainer.evaluate()["eval_loss"])
    assert len(losses[0]) == 3
    torch.testing.assert_close(*(torch.tensor(found) for found in losses), rtol=1e-4, atol=1e-5)


def test_the_small_gpt() -> None:
    model = GPT(GPTConfig(vocab_size=40, num_layers=1, num_heads=2, embed_dim=16, tied_head=True))
    targets = TOKENS.roll(-1, 1)
    logits, expected = model(TOKENS, targets)
    truth = torch.autograd.grad(expected, list(model.parameters()))
    handle = use_fused_loss(model)
    nothing, loss = model(TOKENS, targets=targets)
    assert nothing is None
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, list(model.parameters())), truth, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.eval()(TOKENS, targets)[0], logits)
    assert model.generate(TOKENS[:, :2], 3).shape == (2, 5)
    handle.remove()
    assert torch.equal(model.train()(TOKENS, targets)[0], logits)
