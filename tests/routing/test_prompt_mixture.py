"""The module: losses, who learns, what is kept between batches, files, and a run under the Trainer."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch.nn import functional

pytest.importorskip("transformers")

from clip_cases import NAMES, TEMPLATES, make_clip, make_tokenizer

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.routing import PromptMixture, hard_prompt_gate_target, mixture_logits

IMAGES, LABELS = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(3)), torch.arange(6) % 2


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def make(tokenizer):
    def build(classnames=NAMES[:2], all_classnames=NAMES, templates=TEMPLATES, clip=None, **options):
        torch.manual_seed(1)
        return PromptMixture(clip or make_clip(), tokenizer, templates, classnames, all_classnames, **options)

    return build


def count_text_passes(model) -> list[int]:
    """The numbers of sequences that the text encoder reads from now on."""
    seen: list[int] = []
    model.clip.text_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return seen


def test_a_step_is_made_of_its_parts(make) -> None:
    model = make(text_weight=3.0, gate_weight=0.5, increment=4.0)
    out = model(IMAGES, LABELS)
    image, text = model.image_features(IMAGES), model.text_features(NAMES)
    gate = functional.linear(image, model.router.weight, model.router.bias)
    scale = float(model.clip.logit_scale.exp())
    torch.testing.assert_close(out.gate_logits, gate)
    torch.testing.assert_close(out.logits, mixture_logits(image, text[:, :2], gate, 2, scale))
    torch.testing.assert_close(out.loss_cls, functional.cross_entropy(out.logits, LABELS))
    target = hard_prompt_gate_target(image, model.bank.prototypes, LABELS, 2, 4.0)
    torch.testing.assert_close(out.loss_gate, -(target * gate.log_softmax(-1)).sum(1).mean())
    own = [functional.cross_entropy(text[g] @ model.bank.prototypes[g].T, torch.arange(3)) for g in range(3)]
    torch.testing.assert_close(out.loss_text, torch.stack(own).mean())
    torch.testing.assert_close(out.loss, out.loss_cls + 3.0 * out.loss_text + 0.5 * out.loss_gate)
    assert torch.equal(out.topk_weights.sum(1), torch.ones(6)) and out.topk_indices.shape == (6, 2)
    assert next(iter(out)) == "loss" and out["logits"] is out.logits
    with pytest.raises(AttributeError, match="loss_image"):
        _ = out.loss_image


def test_without_labels_there_is_no_loss(make) -> None:
    out = make()(IMAGES)
    assert out.loss is None and out.loss_text is None and "loss" not in out and out.logits.shape == (6, 2)


def test_one_prompt_is_coop(make) -> None:
    model = make(templates=TEMPLATES[:1], top_k=1, text_weight=0.0)
    out = model(IMAGES, LABELS)
    wanted = model.clip.logit_scale.exp() * model.image_features(IMAGES) @ model.text_features()[0].T
    torch.testing.assert_close(out.logits, wanted)
    assert out.loss_gate == 0.0 and out.loss_text is None and torch.equal(out.loss, out.loss_cls)


def test_who_learns(make) -> None:
    model = make()
    model(IMAGES, LABELS).loss.backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    norms = {name for name in wanted if name.startswith("clip.")}
    assert learning == wanted
    assert wanted - norms == {"bank.context", "bank.correction", "router.weight", "router.bias"}
    assert {name.rsplit(".", 2)[1] for name in norms} == {"layer_norm1", "layer_norm2"} and len(norms) == 8
    prompts, encoder = model.trainable_parameters(0.02)
    assert (prompts["lr"], encoder["lr"]) == (0.02, 0.002) and len(encoder["params"]) == 8
    assert len(make(finetune_vision_ln=False).trainable_parameters(0.02)) == 1


def test_class_loss_teaches_the_chosen_prompts_and_text_loss_all(make) -> None:
    model = make(top_k=1, finetune_vision_ln=False)
    with torch.no_grad():
        model.router.bias.copy_(torch.tensor([0.0, 100.0, 0.0]))
    out = model(IMAGES, LABELS)
    by_class, by_text = (torch.autograd.grad(out[n], model.bank.context, retain_graph=True)[0].abs().sum(1) > 0
                         for n in ("loss_cls", "loss_text"))  # fmt: skip
    assert by_class.tolist() == [False] * 4 + [True] * 6 + [False] * 2 and by_text.all()
    assert torch.autograd.grad(out.loss_gate, model.bank.context, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(out.loss_text, model.router.weight, allow_unused=True)[0] is None


def test_the_clip_stays_in_evaluation_mode(make) -> None:
    model = make().train()
    assert model.training and model.router.training and not any(m.training for m in model.clip.modules())


def test_one_text_pass_where_one_will_do(make) -> None:
    for options, wanted in (({}, [9]), ({"full_stop": "code"}, [9, 6]), ({"text_weight": 0.0}, [6])):
        model = make(**options)
        seen = count_text_passes(model)
        model(IMAGES, LABELS)
        assert seen == wanted


def test_full_stops_as_in_the_code(make) -> None:
    always, code = make(), make(full_stop="code")
    a, b = always(IMAGES, LABELS), code(IMAGES, LABELS)
    torch.testing.assert_close(a.loss_text, b.loss_text)
    assert not torch.allclose(a.logits, b.logits)


def test_text_features_are_kept_while_nothing_changes(make) -> None:
    model = make()
    optimizer = torch.optim.SGD(model.trainable_parameters(0.1))
    seen = count_text_passes(model)
    with torch.no_grad():
        first = [model(IMAGES).logits for _ in range(3)]
        assert seen == [6] and torch.equal(first[0], first[2])
        model.text_features().zero_()  # a copy
        assert torch.equal(model(IMAGES).logits, first[0])
    model(IMAGES, LABELS).loss.backward()
    optimizer.step()
    seen.clear()
    with torch.no_grad():
        assert not torch.equal(model(IMAGES).logits, first[0]) and seen == [6]
        model.bank.context.data.mul_(2.0)
        model(IMAGES)
        model.set_classes(NAMES)
        assert model(IMAGES).logits.shape == (6, 3) and seen[1:] == [6, 9]
        model.clip.text_projection.weight.mul_(2.0)
        model(IMAGES)
        assert seen[3:] == [9]
    with torch.inference_mode():
        model(IMAGES)
    assert seen[4:] == []


def test_gradients_never_come_from_what_is_kept(make) -> None:
    model = make()
    with torch.no_grad():
        model(IMAGES)
    model(IMAGES, LABELS).loss.backward()
    assert model.bank.context.grad.any()


def test_training_goes_on_after_inference_mode(make) -> None:
    model = make(NAMES[:2], None)
    with torch.inference_mode():
        model.set_classes(NAMES)
        model(IMAGES)
    model(IMAGES, LABELS).loss.backward()
    model.bank.requires_grad_(False)
    with torch.inference_mode():
        model(IMAGES)
    model(IMAGES, LABELS).loss_cls.backward()  # through the layer norms, with what was kept
    assert model.router.weight.grad.any()


def test_new_classes_read_the_same_prompts(make) -> None:
    model = make(NAMES[:2], None)
    with torch.no_grad():
        model.bank.context.add_(0.1)
        model.set_classes(["blue_bird", "green cat"])
        fresh = make(["blue bird", "green cat"], None)
        fresh.bank.context.copy_(model.bank.context)
        torch.testing.assert_close(model(IMAGES).logits, fresh(IMAGES).logits)
    assert model.all_classnames == ("cat", "big red dog", "blue bird", "green cat")
    assert model(IMAGES, LABELS).loss.isfinite()


@pytest.mark.parametrize(("temperature", "factor"), [("clip", None), (0.5, 2.0)], ids=["clip", "number"])
def test_temperature_of_the_text_loss(make, temperature, factor) -> None:
    plain, model = make(), make(text_temperature=temperature)
    factor = factor or float(model.clip.logit_scale.exp())
    logits = torch.einsum("gcd,ged->gce", plain.text_features(NAMES), plain.bank.prototypes) * factor
    wanted = functional.cross_entropy(logits.flatten(0, 1), torch.arange(3).repeat(3))
    torch.testing.assert_close(model(IMAGES, LABELS).loss_text, wanted)


def test_text_loss_at_every_second_step(make) -> None:
    model = make(text_every=2)
    assert ["loss_text" in model(IMAGES, LABELS) for _ in range(4)] == [True, False, True, False]
    model.eval()
    assert all("loss_text" in model(IMAGES, LABELS) for _ in range(2))


def test_noise_is_for_training(make) -> None:
    model = make(text_noise=0.5, text_weight=0.0)
    clean = model.eval()(IMAGES).logits
    noisy = [not torch.allclose(model.train()(IMAGES).logits, clean) for _ in range(12)]
    assert 0 < sum(noisy) < 12 and torch.equal(model.eval()(IMAGES).logits, clean)


def test_recomputing_the_text_encoder_changes_no_gradient(make) -> None:
    found = []
    for recompute in (False, True):
        model = make(recompute_text=recompute)
        model(IMAGES, LABELS).loss.backward()
        found.append(model.bank.context.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_16_bit_clip(make, dtype) -> None:
    model = make(clip=make_clip().to(dtype))
    out = model(IMAGES.to(dtype), LABELS)
    out.loss.backward()
    assert out.logits.dtype is out.loss.dtype is model.bank.context.grad.dtype is torch.float32
    assert model.bank.context.grad.isfinite().all()
    torch.testing.assert_close(out.loss, make()(IMAGES, LABELS).loss, rtol=0.05, atol=0.05)


def test_autocast_reaches_the_encoders_only(make) -> None:
    model = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(IMAGES, LABELS)
    assert out.logits.dtype is out.gate_logits.dtype is out.loss.dtype is torch.float32
    torch.testing.assert_close(out.loss, model(IMAGES, LABELS).loss, rtol=0.05, atol=0.05)


def test_no_images(make) -> None:
    out = make()(IMAGES[:0], LABELS[:0])
    assert out.logits.shape == (0, 2) and out.loss_cls == 0.0 and out.loss.isfinite()


def test_saved_prompts_come_back(make, tokenizer, tmp_path) -> None:
    model = make(top_k=3, text_temperature="clip", text_weight=2.0)
    optimizer = torch.optim.SGD(model.trainable_parameters(0.1))
    model(IMAGES, LABELS).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "prompts")
    assert {p.name for p in (tmp_path / "prompts").iterdir()} == {"prompt_mixture.json", "prompt_mixture.safetensors"}
    again = PromptMixture.from_pretrained(tmp_path / "prompts", make_clip(), tokenizer)
    assert (again.top_k, again.text_weight, again.classnames) == (3, 2.0, model.classnames)
    a, b = model(IMAGES, LABELS), again(IMAGES, LABELS)
    assert set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_files_that_do_not_fit(make, tokenizer, tmp_path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    with pytest.raises(StateError, match=r"no prompt_mixture\.json"):
        PromptMixture.from_pretrained(tmp_path / "elsewhere", make_clip(), tokenizer)
    settings = json.loads((tmp_path / "prompt_mixture.json").read_text())
    changed = {**settings, "templates": [["a photo with a {}"], *settings["templates"][1:-1], ["with {} in it"]]}
    (tmp_path / "prompt_mixture.json").write_text(json.dumps(changed))
    with pytest.raises(StateError, match=r"bank\.context"):
        PromptMixture.from_pretrained(tmp_path, make_clip(), tokenizer)
    (tmp_path / "prompt_mixture.json").write_text(json.dumps({**settings, "format": 99}))
    with pytest.raises(StateError, match="this version"):
        PromptMixture.from_pretrained(tmp_path, make_clip(), tokenizer)
    (tmp_path / "prompt_mixture.json").write_text("{")
    with pytest.raises(StateError, match="damaged"):
        PromptMixture.from_pretrained(tmp_path, make_clip(), tokenizer)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"top_k": 4}, ArgumentValueError, "top_k"),
        ({"top_k": 0}, ArgumentValueError, "top_k"),
        ({"all_classnames": ["cat"]}, ArgumentValueError, "'big red dog'"),
        ({"text_temperature": "warm"}, ArgumentValueError, "text_temperature"),
        ({"text_temperature": 0.0}, ArgumentValueError, "text_temperature"),
        ({"text_weight": -1.0}, ArgumentValueError, "text_weight"),
        ({"text_every": 0}, ArgumentValueError, "text_every"),
        ({"full_stop": "never"}, ArgumentValueError, "full_stop"),
        ({"finetune_vision_ln": 1}, ArgumentTypeError, "finetune_vision_ln"),
        ({"correction": None}, ArgumentTypeError, "correction"),
        ({"clip": torch.nn.Linear(2, 2)}, ArgumentTypeError, "SigLIP"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_options(make, options, error, words) -> None:
    with pytest.raises(error, match=words):
        make(**options)


def test_bad_batches(make) -> None:
    model = make()
    for images, labels, error, words in (
        (IMAGES, LABELS + 1, ArgumentValueError, "labels"),
        (IMAGES, LABELS.float(), ArgumentTypeError, "labels"),
        (IMAGES, LABELS[:2], ArgumentValueError, "labels"),
        (IMAGES[0], None, ArgumentValueError, "pixel_values"),
        (IMAGES.long(), None, ArgumentTypeError, "pixel_values"),
    ):
        with pytest.raises(error, match=words):
            model(images, labels)
    with pytest.raises(ArgumentValueError, match="names"):
        model.set_classes([])


def test_an_image_encoder_without_blocks_has_no_norms_to_train(make) -> None:
    clip = make_clip()
    clip.vision_model.encoder.layers = torch.nn.ModuleList()
    with pytest.raises(ArgumentValueError, match="finetune_vision_ln"):
        make(clip=copy.deepcopy(clip))
    make(clip=clip, finetune_vision_ln=False)


@pytest.mark.filterwarnings("ignore")  # what a Trainer warns about is not ours
def test_the_trainer_of_transformers(make, tmp_path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model = make()
    rows = [{"pixel_values": image, "labels": label} for image, label in zip(IMAGES, LABELS, strict=True)]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(tmp_path), max_steps=2, per_device_train_batch_size=3, report_to=[], use_cpu=True),
        train_dataset=rows,
        eval_dataset=rows,
        optimizers=(torch.optim.SGD(model.trainable_parameters(0.1)), None),
    )
    trainer.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(dict(model.named_parameters())[name].requires_grad for name in moved)
    assert trainer.evaluate()["eval_loss"] > 0
    prediction = trainer.predict(rows)
    torch.testing.assert_close(torch.tensor(prediction.predictions[0]), model.eval()(IMAGES).logits.detach())
