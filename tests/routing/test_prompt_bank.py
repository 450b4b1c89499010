"""Soft prompts: what they are made of, what they give before training, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

pytest.importorskip("transformers")

from clip_cases import NAMES, TEMPLATES, make_clip, make_tokenizer

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.routing import PromptBank


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def clip():
    return make_clip()


def text_feature(clip, tokenizer, text: str) -> torch.Tensor:
    """As a user of transformers computes it."""
    ids = tokenizer(f"<start> {text} <end>", return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        found = clip.get_text_features(input_ids=ids)
    return functional.normalize(getattr(found, "pooler_output", found)[0], dim=-1)


@pytest.mark.parametrize("legacy", [False, True], ids=["first-end", "largest-id"])
def test_before_training_a_soft_prompt_is_the_first_template_of_its_group(tokenizer, legacy) -> None:
    clip = make_clip(legacy=legacy)
    bank = PromptBank(TEMPLATES, NAMES, tokenizer, clip)
    found = bank(clip)
    assert found.shape == (3, 3, 24)
    for g, group in enumerate(TEMPLATES):
        for c, name in enumerate(["cat", "big red dog", "blue bird"]):
            hard = text_feature(clip, tokenizer, group[0].format(name) + " .")
            torch.testing.assert_close(found[g, c], hard, rtol=1e-5, atol=1e-6)


def test_a_prototype_is_the_mean_direction_of_its_templates(clip, tokenizer) -> None:
    bank = PromptBank(TEMPLATES, NAMES, tokenizer, clip)
    each = torch.stack([text_feature(clip, tokenizer, t.format("big red dog") + " .") for t in TEMPLATES[1]])
    torch.testing.assert_close(bank.prototypes[1, 1], functional.normalize(each.mean(0), dim=-1), rtol=1e-5, atol=1e-6)


def test_a_full_stop_at_the_end_of_a_template_changes_nothing(clip, tokenizer) -> None:
    plain, stopped = (PromptBank([[f"a photo of {{}}{end}"]], NAMES, tokenizer, clip) for end in ("", "."))
    assert torch.equal(plain.prototypes, stopped.prototypes) and torch.equal(plain(clip), stopped(clip))


def test_without_full_stop_only_where_the_code_leaves_it_out(clip, tokenizer) -> None:
    always, code = (PromptBank(TEMPLATES, NAMES, tokenizer, clip, full_stop=f) for f in ("always", "code"))
    assert torch.equal(always(clip, stop=False), always(clip)) and torch.equal(code(clip), always(clip))
    hard = text_feature(clip, tokenizer, TEMPLATES[0][0].format("cat"))
    torch.testing.assert_close(code(clip, stop=False)[0, 0], hard, rtol=1e-5, atol=1e-6)


def test_the_context_counts_the_words_around_the_name(clip, tokenizer) -> None:
    bank = PromptBank(TEMPLATES, NAMES, tokenizer, clip)
    assert bank.context.shape == (4 + 6 + 2, 32)
    table = clip.text_model.embeddings.token_embedding.weight
    words = [token for group in TEMPLATES for token in group[0].replace("{}", "").split()]
    assert torch.equal(bank.context, table[torch.tensor(tokenizer.convert_tokens_to_ids(words))])


def test_every_group_reads_its_own_context(clip, tokenizer) -> None:
    bank = PromptBank(TEMPLATES, NAMES, tokenizer, clip)
    for group, part in enumerate((slice(0, 4), slice(4, 10), slice(10, 12))):
        gradient = torch.autograd.grad(bank(clip)[group].sum(), bank.context)[0]
        assert (gradient[part].abs().sum(1) > 0).all()
        gradient[part] = 0
        assert not gradient.any()


def test_the_correction_is_added_before_normalising(clip, tokenizer) -> None:
    bank = PromptBank(TEMPLATES, NAMES, tokenizer, clip)
    with torch.no_grad():
        bank.correction.fill_(1e6)
        torch.testing.assert_close(bank(clip), torch.full((3, 3, 24), 24**-0.5), rtol=1e-3, atol=1e-3)
    assert PromptBank(TEMPLATES, NAMES, tokenizer, clip, correction=False).correction is None


def test_recomputing_gives_the_same_gradient(clip, tokenizer) -> None:
    bank = PromptBank(TEMPLATES, NAMES, tokenizer, clip)
    weight = torch.randn(3, 3, 24)
    found = [torch.autograd.grad((bank(clip, recompute=r) * weight).sum(), bank.context)[0] for r in (False, True)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_new_names_get_prototypes_and_old_ones_keep_theirs(clip, tokenizer) -> None:
    bank = PromptBank(TEMPLATES, NAMES[:2], tokenizer, clip)
    before = bank.prototypes.clone()
    bank.add_classes(["cat", "blue bird"], clip)
    assert bank.names == ("cat", "big red dog", "blue bird") and torch.equal(bank.prototypes[:, :2], before)
    torch.testing.assert_close(bank.prototypes, PromptBank(TEMPLATES, NAMES, tokenizer, clip).prototypes)
    assert bank.indices(["blue bird", "cat"]).tolist() == [2, 0]
    with pytest.raises(ArgumentValueError, match="'fish'"):
        bank.indices(["fish"])


def test_unicode_names(clip, tokenizer) -> None:
    assert PromptBank(TEMPLATES, ["café", "cat"], tokenizer, clip)(clip).isfinite().all()


def test_a_bfloat16_encoder_gives_float32_features(tokenizer) -> None:
    clip = make_clip().bfloat16()
    bank = PromptBank(TEMPLATES, NAMES, tokenizer, clip)
    assert bank.context.dtype is bank.prototypes.dtype is bank(clip).dtype is torch.float32
    bank(clip).sum().backward()
    assert bank.context.grad.isfinite().all()


@pytest.mark.parametrize(
    ("templates", "names", "error", "words"),
    [
        ([["a photo"]], NAMES, ArgumentValueError, "exactly one"),
        ([["a {} of a {}"]], NAMES, ArgumentValueError, "exactly one"),
        ([["a photo of a {}"], []], NAMES, ArgumentValueError, r"templates\[1\]"),
        ([["{}."]], NAMES, ArgumentValueError, "a word beside"),
        ([["a photo of {}s"]], NAMES, ArgumentValueError, "word of its own"),
        (["a photo of a {}"], NAMES, ArgumentTypeError, r"templates\[0\]"),
        ("a photo of a {}", NAMES, ArgumentValueError, "templates"),
        ([[3]], NAMES, ArgumentTypeError, "strings"),
        (TEMPLATES, ["big dog", "big_dog"], ArgumentValueError, "'big dog'"),
        (TEMPLATES, [], ArgumentValueError, "classnames"),
        (TEMPLATES, ["cat", " "], ArgumentValueError, "empty"),
        (TEMPLATES, "cat", ArgumentTypeError, "classnames"),
        (TEMPLATES, ["cat", 3], ArgumentTypeError, "classnames"),
        (TEMPLATES, ["cat", "big " * 9 + "dog"], ArgumentValueError, "'big big.*'a photo of a {}'.*at most"),
    ],
    ids=range(14),
)  # fmt: skip
def test_bad_prompts(clip, tokenizer, templates, names, error, words) -> None:
    with pytest.raises(error, match=words):
        PromptBank(templates, names, tokenizer, clip)


def test_a_tokenizer_of_another_model_is_refused(clip, tokenizer) -> None:
    with pytest.raises(ArgumentValueError, match="does not belong"):
        PromptBank(TEMPLATES, NAMES, make_tokenizer(("a", "photo")), clip)
    with pytest.raises(ArgumentTypeError, match="tokenizer"):
        PromptBank(TEMPLATES, NAMES, None, clip)


def test_an_end_token_that_is_not_the_largest_id_is_refused_where_the_encoder_pools_there() -> None:
    clip, tokenizer = make_clip(legacy=True), make_tokenizer()
    tokenizer.eos_token = "photo"
    with pytest.raises(ArgumentValueError, match="largest"):
        PromptBank([["a sketch of {}"]], ["cat"], tokenizer, clip)


def test_something_else_than_a_clip_is_refused(tokenizer) -> None:
    with pytest.raises(ArgumentTypeError, match="CLIPModel"):
        PromptBank(TEMPLATES, NAMES, tokenizer, torch.nn.Linear(2, 2))


def test_the_tokenizer_of_clip_reads_the_spliced_prompt_as_the_whole_one() -> None:
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: place for place, piece in enumerate(pieces)}, merges=[])
    clip = make_clip(legacy=True, length=64, words=len(pieces))
    templates = [["The photo, of a {}."], ["a {}'s sketch"], ["(it's) {}, 3 times"]]
    names = ["Café au_lait", "Boeing 747-400", "dog's", "東京"]
    bank = PromptBank(templates, names, tokenizer, clip)
    with torch.no_grad():
        for g, (template,) in enumerate(templates):
            for c, name in enumerate(names):
                text = template.rstrip(".").format(name.replace("_", " ")) + "."
                ids = tokenizer(text, return_tensors="pt")["input_ids"]
                wanted = functional.normalize(clip.get_text_features(ids).pooler_output[0], dim=-1)
                torch.testing.assert_close(bank(clip)[g, c], wanted, rtol=1e-4, atol=1e-5)
