"""Instruction-aware prompts in models of transformers: cache, padding, batches of tasks, training, files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.models import GPT, GPTConfig, IAPTConfig, IAPTModel, get_iapt_model

transformers = pytest.importorskip("transformers")

_COMMON = {
    "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "initializer_range": 0.2,
}  # fmt: skip
_SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 40,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _SIZES),
    "qwen3": ("Qwen3", {**_SIZES, "head_dim": 8}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}),
    "mistral": ("Mistral", {**_SIZES, "sliding_window": 4}),
}
IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(1))
KEEP = torch.ones_like(IDS)
KEEP[0, :3] = 0
GREEDY = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


def base(name: str = "llama") -> Any:
    torch.manual_seed(0)
    kind, sizes = MODELS[name]
    ending = "LMHeadModel" if name == "gpt2" else "ForCausalLM"
    return getattr(transformers, kind + ending)(getattr(transformers, f"{kind}Config")(**_COMMON, **sizes)).eval()


def wrapped(name: str = "llama", **options: Any) -> IAPTModel:
    return get_iapt_model(base(name), IAPTConfig(**{"bottleneck": 8, **options}))


def positions(keep: Tensor) -> Tensor:
    return (keep.cumsum(-1) - 1).clamp(min=0)


@pytest.mark.parametrize("name", MODELS)
def test_generation_from_the_cache_is_full_recomputation(name: str) -> None:
    model = wrapped(name)
    generated = model.generate(IDS, attention_mask=KEEP, **GREEDY)
    ids, keep = IDS, KEEP
    instruction = KEEP
    for _ in range(5):
        options = {"attention_mask": keep, "instruction_mask": instruction, "position_ids": positions(keep)}
        logits = model(ids, use_cache=False, **options).logits[:, -1]
        ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), 1)
        keep, instruction = (torch.nn.functional.pad(t, (0, 1), value=v) for t, v in ((keep, 1), (instruction, 0)))
    assert torch.equal(generated, ids)
    alone = model.generate(IDS[:1, 3:], attention_mask=KEEP[:1, 3:], **GREEDY)
    assert torch.equal(alone[0], generated[0, 3:])


def test_the_prefix_is_the_concatenation() -> None:
    model = wrapped().double()
    llama, hidden = model.model, torch.randn(2, 5, 32, dtype=torch.float64)
    layer = llama.model.layers[1]
    inputs: dict[str, Any] = {}
    handle = layer.register_forward_pre_hook(lambda _, args, kwargs: inputs.update(kwargs, h=args[0]), with_kwargs=True)
    out = []
    done = layer.register_forward_hook(lambda _, args, output: out.append(output))
    model(IDS, attention_mask=KEEP)
    handle.remove()
    done.remove()
    del hidden
    prompts = model.adapters["default"].generator(1)(inputs["h"], KEEP.bool())
    both = torch.cat((prompts, inputs["h"]), 1)
    cos, sin = (t.expand(2, -1, -1) for t in inputs["position_embeddings"])
    rotation = torch.cat((torch.ones_like(cos[:, :4]), cos), 1), torch.cat((torch.zeros_like(sin[:, :4]), sin), 1)
    seen = torch.ones(13, 13, dtype=torch.bool).tril() & torch.nn.functional.pad(KEEP, (4, 0), value=1).bool()[:, None]
    expected = layer.forward(both, attention_mask=seen[:, None], position_embeddings=rotation)[:, 4:]
    torch.testing.assert_close(out[0][KEEP.bool()], expected[KEEP.bool()], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_implementations_agree(attention: str) -> None:
    model = wrapped()
    expected = model(IDS).logits
    model.model.set_attn_implementation(attention)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(IDS, attention_mask=torch.ones_like(IDS)).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_disabled_and_unloaded_it_is_the_backbone_to_the_bit(name: str) -> None:
    plain = base(name)
    expected = plain(IDS, attention_mask=KEEP).logits
    model = get_iapt_model(plain, IAPTConfig(bottleneck=8))
    assert not torch.allclose(model(IDS, attention_mask=KEEP).logits, expected, atol=1e-3)
    model.disable()
    assert torch.equal(model(IDS, attention_mask=KEEP).logits, expected)
    model.enable()
    assert torch.equal(model(IDS, attention_mask=KEEP, adapter_names=[None, None]).logits, expected)
    with pytest.raises(StateError, match="already"):
        get_iapt_model(plain)
    assert model.unload() is plain and all(p.requires_grad for p in plain.parameters())
    assert torch.equal(plain(IDS, attention_mask=KEEP).logits, expected)
    assert get_iapt_model(plain)(IDS).logits.shape == (2, 9, 60)


def test_answers_do_not_change_prompts() -> None:
    model = wrapped()
    labels = IDS.clone()
    labels[:, :5] = -100
    other = IDS.clone()
    other[:, 6:] = (other[:, 6:] + 1) % 60
    first, second = (model(ids, labels=labels).logits for ids in (IDS, other))
    assert torch.equal(first[:, :6], second[:, :6]) and not torch.allclose(first[:, 6:], second[:, 6:])
    whole = model(other).logits  # without labels all of it is the instruction
    assert not torch.allclose(whole[:, :6], first[:, :6])
    with pytest.raises(ArgumentValueError, match="instruction_mask"):
        model(IDS, labels=IDS)


def two_tasks(name: str = "llama") -> IAPTModel:
    model = wrapped(name)
    model.add_adapter("other", IAPTConfig(bottleneck=4, num_tokens=2, layers=[1]))
    with torch.no_grad():
        for parameter in model.adapters["other"].parameters():
            parameter.mul_(3)
    return model


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_batch_of_different_tasks_is_each_task_alone(name: str) -> None:
    model = two_tasks(name)
    ids, keep = IDS[[0, 1, 0]], KEEP[[0, 1, 0]]
    mixed = model.generate(ids, attention_mask=keep, adapter_names=["default", "other", None], **GREEDY)
    for row, task in enumerate(["default", "other", None]):
        if task is None:
            model.disable()
        else:
            model.set_adapter(task)
        alone = model.generate(ids[row : row + 1], attention_mask=keep[row : row + 1], **GREEDY)
        assert torch.equal(mixed[row], alone[0])
    model.enable()
    model.set_adapter("default")
    assert len({tuple(row.tolist()) for row in mixed[[0, 2]]}) == 2  # prompts change what is written
    logits = model(ids, attention_mask=keep, adapter_names=["default", "other", None]).logits
    torch.testing.assert_close(logits[0], model(ids[:1], attention_mask=keep[:1]).logits[0], rtol=1e-4, atol=1e-4)


def test_beams_and_several_answers() -> None:
    model = two_tasks()
    options = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    mixed = model.generate(IDS, attention_mask=KEEP, adapter_names=["other", "default"], **options)
    for row, task in enumerate(["other", "default"]):
        model.set_adapter(task)
        alone = model.generate(IDS[row : row + 1], attention_mask=KEEP[row : row + 1], **options)
        assert torch.equal(mixed[2 * row : 2 * row + 2], alone)


def test_a_conversation_goes_on_with_the_same_prompts() -> None:
    model = wrapped()
    calls: list[int] = []
    model.adapters["default"].generator(0).register_forward_hook(lambda *_: calls.append(1))
    first = model(IDS[:, :6], use_cache=True)
    cache = first.past_key_values
    assert cache.get_seq_length() == 6 and cache.layers[0].keys.shape[-2] == 10
    second = model(IDS[:, 6:], past_key_values=cache, use_cache=True)
    assert len(calls) == 1 and cache.get_seq_length() == 9
    instruction = torch.tensor([[1] * 6 + [0] * 3] * 2)
    whole = model(IDS, instruction_mask=instruction).logits
    torch.testing.assert_close(torch.cat((first.logits, second.logits), 1), whole, rtol=1e-4, atol=1e-4)
    cache.crop(-3)
    cache.batch_select_indices(torch.tensor([1]))
    again = model(IDS[1:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(again, second.logits[1:], rtol=1e-4, atol=1e-4)
    cache.reset()
    torch.testing.assert_close(model(IDS[:, :6], past_key_values=cache).logits, first.logits)


def checkpointed(model: Any, **options: Any) -> None:
    """Switch checkpoints on, under the name that this version of transformers has for it."""
    if hasattr(model.model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(**({"activation_checkpointing_kwargs": options} if options else {}))
    else:
        model.gradient_checkpointing_enable(**({"gradient_checkpointing_kwargs": options} if options else {}))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_gradients_reach_the_generators_alone_also_through_checkpoints(name: str) -> None:
    model = wrapped(name)
    labels = IDS.masked_fill(torch.arange(9) < 5, -100)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(IDS, attention_mask=KEEP, labels=labels).loss.backward()
        assert all(p.grad is None for p in model.model.parameters())
        return {key: p.grad.clone() for key, p in model.adapters.named_parameters()}

    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    expected = gradients()
    assert all(value.abs().max() > 0 for value in expected.values())
    checkpointed(model)
    torch.testing.assert_close(gradients(), expected, rtol=1e-4, atol=1e-7)
    model.disable()
    model.model.enable_input_require_grads()
    assert not torch.allclose(model(IDS).logits, model.eval()(IDS[:, :1]).logits)
    model.enable()
    model.train()
    checkpointed(model, use_reentrant=True)
    with pytest.raises(StateError, match="use_reentrant"):
        model(IDS, labels=labels)


def test_a_few_steps_learn() -> None:
    model = wrapped().train()
    labels = IDS.masked_fill(torch.arange(9) < 5, -100)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(IDS, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.3
    model.learn("activation")
    assert {key.split(".")[-2] for key, p in model.named_parameters() if p.requires_grad} == {"activation"}
    model.learn("none")
    assert not any(p.requires_grad for p in model.parameters())


def test_16_bit_models_and_copies() -> None:
    model = get_iapt_model(base().to(torch.bfloat16), IAPTConfig(bottleneck=8))
    assert model(IDS).logits.dtype is torch.bfloat16
    assert next(model.adapters.parameters()).dtype is torch.float32
    twin = copy.deepcopy(model)
    assert torch.equal(twin(IDS).logits, model(IDS).logits)
    with torch.no_grad():
        twin.adapters["default"].generator(0).up.bias.add_(5.0)
    assert not torch.equal(twin(IDS).logits, model(IDS).logits)


def test_adapters_come_back_from_disk(tmp_path: Path) -> None:
    model = two_tasks()
    model.add_adapter("shared", IAPTConfig(bottleneck=4, share="all", activation="tanh"))
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "iapt.json", "default.safetensors", "other.safetensors", "shared.safetensors",
    }  # fmt: skip
    again = IAPTModel.from_pretrained(base(), tmp_path)
    for name in ("default", "other", "shared"):
        again.set_adapter(name)
        model.set_adapter(name)
        assert torch.equal(again(IDS).logits, model(IDS).logits)
        assert again.num_parameters() == model.num_parameters()
    one = IAPTModel.from_pretrained(base(), tmp_path, ["other"])
    one.load_adapter(tmp_path, "shared")
    assert list(one.adapters) == ["other", "shared"] and one.active == "other"
    with pytest.raises(StateError, match="already"):
        one.load_adapter(tmp_path, "shared")
    one.set_adapter("shared")
    one.delete_adapter("other")
    assert torch.equal(one(IDS).logits, model(IDS).logits)
    one.save_pretrained(tmp_path / "part", ["shared"])
    assert json.loads((tmp_path / "part" / "iapt.json").read_text())["adapters"].keys() == {"shared"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "damaged"), ("[]", "damaged"), ('{"format": 2}', "format 2"), ('{"format": 1, "model": {}}', "damaged"),
        ('{"format": 1, "model": {"width": 32, "layers": 2}, "adapters": {"../x": {}}}', "damaged"),
        ('{"format": 1, "model": {"width": 32, "layers": 2}, "adapters": {"x": {"bottleneck": 0}}}', "damaged"),
        ('{"format": 1, "model": {"width": 16, "layers": 2}, "adapters": {"default": {}}}', "for a model with"),
        ('{"format": 1, "model": {"width": 32, "layers": 2}, "adapters": {"gone": {}}}', "cannot be read"),
        ('{"format": 1, "model": {"width": 32, "layers": 2}, "adapters": {"default": {}}}', "does not fit"),
        (" " * (1 << 20) + "{}", "larger"),
    ],
    ids=lambda value: value[-30:],
)  # fmt: skip
def test_damaged_folders_say_what_is_wrong(text: str, words: str, tmp_path: Path) -> None:
    wrapped().save_pretrained(tmp_path)
    (tmp_path / "iapt.json").write_text(text)
    plain = base()
    with pytest.raises(StateError, match=words):
        IAPTModel.from_pretrained(plain, tmp_path)


def test_missing_folders_and_names(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"no iapt\.json"):
        IAPTModel.from_pretrained(base(), tmp_path)
    model = wrapped()
    model.save_pretrained(tmp_path)
    for names in (["x"], []):
        with pytest.raises(ArgumentValueError, match="adapters"):
            IAPTModel.from_pretrained(base(), tmp_path, names)
    for use in (model.set_adapter, model.delete_adapter, model.num_parameters, lambda name: model.learn("all", name)):
        with pytest.raises(ArgumentValueError, match="adapter must be one of"):
            use("x")
    with pytest.raises(StateError, match="active"):
        model.delete_adapter("default")
    for name in ("", "a.b", "../a", "keys", 3):
        with pytest.raises(ArgumentValueError, match="adapter_name"):
            model.add_adapter(name, IAPTConfig())
    with pytest.raises(ArgumentTypeError, match="config"):
        model.add_adapter("b", {"bottleneck": 3})


def test_calls_that_cannot_have_prompts() -> None:
    model = wrapped()
    with pytest.raises(ArgumentValueError, match="window of 40"):
        model(torch.ones(1, 38, dtype=torch.long))
    with pytest.raises(ArgumentValueError, match="instruction_mask"):
        model(IDS, instruction_mask=torch.zeros_like(IDS))
    with pytest.raises(StateError, match="outside"):
        model.model.model(IDS)
    model.disable()
    cache = model(IDS, use_cache=True).past_key_values
    model.enable()
    with pytest.raises(StateError, match="filled without prompts"):
        model(IDS[:, :1], past_key_values=cache)
    with pytest.raises(StateError, match="DynamicCache"):
        model.generate(IDS, cache_implementation="static", **GREEDY)


def test_models_that_cannot_have_prompts() -> None:
    for model in (torch.nn.Linear(2, 2), GPT(GPTConfig(vocab_size=5, num_layers=1, num_heads=1, embed_dim=4)), None):
        with pytest.raises((ArgumentTypeError, StateError), match=r"model must be|has no list"):
            get_iapt_model(model)
    config = transformers.MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, state_size=4)
    with pytest.raises(StateError, match="cannot have prompts"):
        get_iapt_model(transformers.MambaForCausalLM(config))
    config = transformers.BloomConfig(vocab_size=60, hidden_size=16, n_layer=2, n_head=2)
    bloom = transformers.BloomForCausalLM(config)
    with pytest.raises(StateError, match="cannot have prompts"):
        get_iapt_model(bloom)
    assert all(p.requires_grad for p in bloom.parameters()) and bloom(IDS).logits.shape == (2, 9, 60)
    with torch.device("meta"):
        empty = base()
    with pytest.raises(StateError, match="meta device"):
        get_iapt_model(empty)
    with pytest.raises(ArgumentValueError, match="below the model's 2 layers"):
        wrapped(layers=[2])
