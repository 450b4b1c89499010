"""Prompts as token ids: a template is cut at the class name, and sequences are put together class by class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value

__all__: list[str] = []

_LEGACY_END = 2
_TOUCHING = re.compile(r"\w\{\}|\{\}\w")


class Template(NamedTuple):
    """A template, cut where the class name goes.

    Attributes:
        text: the template without its full stop.
        before: token ids before the class name.
        after: token ids after it, without the full stop.
    """

    text: str
    before: list[int]
    after: list[int]


class Sequences(NamedTuple):
    """Token sequences of G templates with C class names each.

    Attributes:
        ids: (G, C, L) int64, padded with the end token; a causal encoder does not see what follows the first one.
        slots: (G, C, L) int64, the row of the context that stands for the token, -1 where the token stands for itself.
    """

    ids: Tensor
    slots: Tensor


def clean_names(names: Any, argument: str = "classnames") -> tuple[str, ...]:
    """Names with blanks for underscores; at least one, none empty, none twice."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        bad_type(argument, names, "a list of strings")
    cleaned = []
    for name in names:
        if not isinstance(name, str):
            raise ArgumentTypeError(f"{argument} must be a list of strings, it holds {name!r}")
        cleaned.append(" ".join(name.replace("_", " ").split()))
        if not cleaned[-1]:
            raise ArgumentValueError(f"{argument} must hold no empty name, got {name!r}")
    if not cleaned:
        bad_value(argument, names, "at least one name")
    twice = sorted({name for name in cleaned if cleaned.count(name) > 1}) if len(set(cleaned)) < len(cleaned) else []
    if twice:
        raise ArgumentValueError(f"{argument} must name every class once, got twice: {', '.join(map(repr, twice))}")
    return tuple(cleaned)


def clean_templates(templates: Any) -> list[list[str]]:
    """Groups of templates without full stops; every template has one ``{}`` for the class name."""
    if isinstance(templates, str) or not isinstance(templates, Sequence) or not templates:
        bad_value("templates", templates, "a list of groups, each a list of templates")
    groups = []
    for index, group in enumerate(templates):
        if isinstance(group, str) or not isinstance(group, Sequence):
            raise ArgumentTypeError(f"templates[{index}] must be a list of templates, got {group!r}")
        if not group:
            raise ArgumentValueError(f"templates[{index}] must hold at least one template, it is empty")
        groups.append([_clean_template(template, f"templates[{index}]") for template in group])
    return groups


def _clean_template(template: Any, where: str) -> str:
    if not isinstance(template, str):
        raise ArgumentTypeError(f"{where} must hold strings, got {template!r}")
    if template.count("{}") != 1:
        raise ArgumentValueError(f"{where}: a template must have exactly one {{}} for the class name, got {template!r}")
    if _TOUCHING.search(template):
        raise ArgumentValueError(f"{where}: {{}} must be a word of its own, got {template!r}")
    return template.strip().rstrip(".").rstrip()


class PromptTokens:
    """The tokenizer as prompts need it, checked against the text encoder.

    Args:
        tokenizer: of transformers, or a processor that has one.
        text_encoder: CLIP's text transformer (``clip.text_model``).
    """

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        if not callable(self.tokenizer) or not hasattr(self.tokenizer, "eos_token_id"):
            bad_type("tokenizer", tokenizer, "a tokenizer or processor of transformers")
        self.start, self.end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if self.start is None or self.end is None:
            raise ArgumentValueError("tokenizer must have a start and an end token, as CLIP's has")
        config = text_encoder.config
        self.longest: int = config.max_position_embeddings
        self.vocabulary: int = text_encoder.embeddings.token_embedding.num_embeddings
        # an encoder whose configuration says 2 takes the feature at the largest id, others at their own end token
        self.end_is_largest = config.eos_token_id == _LEGACY_END
        if not self.end_is_largest and config.eos_token_id != self.end:
            raise ArgumentValueError(
                f"tokenizer does not belong to the text encoder: its end token is {self.end}, the encoder's "
                f"{config.eos_token_id}"
            )
        self.stop = self.ids(".")
        self._names: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Token ids of ``text`` without start and end tokens; none for an empty one."""
        if not text:
            return []
        found = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if max(found, default=0) >= self.vocabulary:
            raise ArgumentValueError(
                f"tokenizer does not belong to the text encoder: {text!r} has token {max(found)}, the encoder knows "
                f"{self.vocabulary}"
            )
        return found

    def template(self, text: str) -> Template:
        """Cut a clean template."""
        before, after = text.split("{}")
        return Template(text, self.ids(before.strip()), self.ids(after.strip()))

    def name(self, name: str) -> list[int]:
        """Token ids of a class name."""
        if name not in self._names:
            found = self.ids(name)
            if not found:
                raise ArgumentValueError(f"class name {name!r} has no tokens")
            self._names[name] = found
        return self._names[name]

    def sequences(self, templates: Sequence[Template], names: Sequence[str], *, stop: bool = True) -> Sequences:
        """The sequences of every template with every name; slots count through the templates' tokens in order."""
        rows, slots = [], []
        first = 0
        for template in templates:
            before, after = len(template.before), len(template.after)
            for name in names:
                own = self.name(name)
                tail = [*(self.stop if stop else ()), self.end]
                row = [self.start, *template.before, *own, *template.after, *tail]
                self._check(row, template, name)
                rows.append(row)
                middle = [-1] * len(own)
                places = list(range(first, first + before + after))
                slots.append([-1, *places[:before], *middle, *places[before:], *([-1] * len(tail))])
            first += before + after
        length = max(map(len, rows))
        shape = (len(templates), len(names), length)
        return Sequences(
            torch.tensor([row + [self.end] * (length - len(row)) for row in rows]).view(shape),
            torch.tensor([row + [-1] * (length - len(row)) for row in slots]).view(shape),
        )

    def _check(self, row: list[int], template: Template, name: str) -> None:
        if len(row) > self.longest:
            raise ArgumentValueError(
                f"class name {name!r} in template {template.text!r} gives {len(row)} tokens, the text encoder reads at "
                f"most {self.longest}"
            )
        if self.end_is_largest and max(row[:-1]) >= self.end:
            raise ArgumentValueError(
                f"the text encoder takes its feature at the largest token id, and the end token, {self.end}, is not "
                f"the largest of class name {name!r} in template {template.text!r}; set its config.eos_token_id"
            )
