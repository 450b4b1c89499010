"""Learnable prompts: one per group of templates, with the prototypes of the group's hard templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice
from softgate.routing._choice import widened
from softgate.routing._clip_encoders import check_text_model, encode_text
from softgate.routing._prompt_tokens import PromptTokens, Sequences, clean_names, clean_templates

__all__ = ["PromptBank"]

#: ``"always"``: every prompt ends in a full stop. ``"code"``: prompts of the classification pass do not.
FullStop = Literal["always", "code"]
_SEQUENCES_AT_ONCE = 1024
_KEPT_SEQUENCES = 4


class PromptBank(nn.Module):
    """G soft prompts and the frozen prototypes of their groups, for a list of class names that may grow.

    A soft prompt is ``[start, context before, class name, context after, full stop, end]``. Its context starts as the
    token embeddings of the group's first template, so that at first it *is* that template. Class names are spliced in
    one by one, whatever their numbers of tokens.

    Args:
        templates: G groups of templates, each with one ``{}`` for the class name; a full stop at the end is left out
            and added again. The first of a group is where its soft prompt starts.
        classnames: all names that prototypes are wanted for; underscores become blanks.
        tokenizer: of transformers, or a processor that has one.
        text_model: a ``CLIPModel`` or ``CLIPTextModelWithProjection``; it is read, not kept.
        correction: learn one vector that is added to all text features before they are normalised; it starts at 0.
        full_stop: ``"always"``, or ``"code"`` for the authors' code, where :meth:`forward` with ``stop=False`` leaves
            the full stop out.

    Attributes:
        context: (tokens of all first templates, width) float32 parameter, group after group.
        correction: (1, D) float32 parameter, or None.
        prototypes: (G, number of names, D) float32, unit-length means of the normalised features of the templates.
        names: the names, in the order of ``prototypes``.

    Raises:
        ArgumentTypeError: wrong types.
        ArgumentValueError: a template without exactly one ``{}`` or without another word, an empty group, a name given
            twice, or a prompt that is longer than what the encoder reads.

    Example:
        >>> bank = PromptBank([["a photo of a {}"], ["a sketch of a {}", "a drawing of a {}"]], ["cat", "dog"],
        ...                   tokenizer, clip)  # doctest: +SKIP
        >>> bank(clip).shape  # doctest: +SKIP
        torch.Size([2, 2, 512])

    Paper: Mixture of Prompt Learning for Vision Language Models, arXiv 2409.12011, section on semantic groups.
    """

    prototypes: Tensor

    def __init__(
        self,
        templates: Sequence[Sequence[str]],
        classnames: Sequence[str],
        tokenizer: Any,
        text_model: nn.Module,
        *,
        correction: bool = True,
        full_stop: FullStop = "always",
    ) -> None:
        super().__init__()
        check_text_model(text_model)
        check_choice("full_stop", full_stop, ("always", "code"))
        if not isinstance(correction, bool):
            bad_type("correction", correction, "a bool")
        self.templates = clean_templates(templates)
        self.full_stop = full_stop
        encoder: Any = text_model.text_model
        self._tokens = PromptTokens(tokenizer, encoder)
        self._hard = [[self._tokens.template(text) for text in group] for group in self.templates]
        self._first = [group[0] for group in self._hard]
        for template in self._first:
            if not template.before and not template.after:
                bad_value("templates", template.text, "such that the first of each group has a word beside {}")
        ids = torch.tensor([token for template in self._first for token in (*template.before, *template.after)])
        table = encoder.embeddings.token_embedding.weight.detach()
        self.context = nn.Parameter(widened(table[ids.to(table.device)]))
        projection: Any = text_model.text_projection
        empty = self.context.new_empty(len(self.templates), 0, projection.out_features).detach()
        self.correction = nn.Parameter(empty.new_zeros(1, empty.shape[-1])) if correction else None
        self.register_buffer("prototypes", empty, persistent=False)
        self.names: tuple[str, ...] = ()
        self._sequences: dict[tuple[Any, ...], Sequences] = {}
        self.add_classes(classnames, text_model)

    @property
    def n_groups(self) -> int:
        """Number of groups G."""
        return len(self.templates)

    def add_classes(self, names: Sequence[str], text_model: nn.Module) -> None:
        """Compute the prototypes of those of ``names`` that have none yet."""
        new = tuple(name for name in clean_names(names) if name not in self.names)
        if not new:
            return
        with torch.inference_mode(False), torch.no_grad():  # what is kept must serve later training
            groups = [self._prototype(group, new, text_model) for group in self._hard]
            added = torch.stack(groups).to(self.prototypes.device)
            self.prototypes = torch.cat([self.prototypes, added], 1)
        self.names += new

    def _prototype(self, templates: Sequence[Any], names: Sequence[str], text_model: Any) -> Tensor:
        """(C, D): mean direction of the templates of one group."""
        device = text_model.text_model.embeddings.token_embedding.weight.device
        ids = self._tokens.sequences(templates, names).ids.to(device)
        parts = [encode_text(text_model, part) for part in ids.flatten(0, 1).split(_SEQUENCES_AT_ONCE)]
        features = functional.normalize(widened(torch.cat(parts)), dim=-1)
        return functional.normalize(features.unflatten(0, ids.shape[:2]).mean(0), dim=-1)

    def indices(self, names: Sequence[str]) -> Tensor:
        """(len(names),) int64, where the names stand in ``prototypes``."""
        places = {name: place for place, name in enumerate(self.names)}
        unknown = [name for name in names if name not in places]
        if unknown:
            raise ArgumentValueError(f"names must have been added to the bank, got {', '.join(map(repr, unknown))}")
        return torch.tensor([places[name] for name in names], device=self.prototypes.device)

    def forward(
        self,
        text_model: nn.Module,
        names: Sequence[str] | None = None,
        *,
        stop: bool = True,
        recompute: bool = False,
    ) -> Tensor:
        """Text features of the soft prompts.

        Args:
            text_model: the encoder the bank was made with.
            names: class names, known to the bank or not; None takes :attr:`names`.
            stop: False leaves the full stop out if ``full_stop`` is ``"code"``.
            recompute: keep no activations of the encoder; one group after another runs again in the backward.

        Returns:
            (G, C, D), unit length, float32 (float64 for a float64 encoder).
        """
        cleaned = self.names if names is None else clean_names(names)
        ids, slots = (t.to(self.context.device) for t in self._soft(cleaned, stop or self.full_stop == "always"))
        if recompute and torch.is_grad_enabled():
            groups = [
                checkpoint(self._encode, text_model, i, s, use_reentrant=False) for i, s in zip(ids, slots, strict=True)
            ]
            return torch.stack(groups)
        parts = zip(*(t.flatten(0, 1).split(_SEQUENCES_AT_ONCE) for t in (ids, slots)), strict=True)
        return torch.cat([self._encode(text_model, i, s) for i, s in parts]).unflatten(0, ids.shape[:2])

    def _soft(self, names: tuple[str, ...], stop: bool) -> Sequences:
        key = (names, stop)
        if key not in self._sequences:
            while len(self._sequences) >= _KEPT_SEQUENCES:
                del self._sequences[next(iter(self._sequences))]
            self._sequences[key] = self._tokens.sequences(self._first, names, stop=stop)
        return self._sequences[key]

    def _encode(self, text_model: Any, ids: Tensor, slots: Tensor) -> Tensor:
        """(S, D): normalised features of sequences (S, L) whose tokens with a slot are rows of the context."""
        tokens = text_model.text_model.embeddings.token_embedding(ids)
        learnt = self.context.to(tokens.dtype)[slots.clamp_min(0)]
        features = widened(encode_text(text_model, ids, torch.where((slots >= 0)[..., None], learnt, tokens)))
        if self.correction is not None:
            features = features + self.correction
        return functional.normalize(features, dim=-1)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"groups={self.n_groups}, classes={len(self.names)}, full_stop={self.full_stop!r}"
