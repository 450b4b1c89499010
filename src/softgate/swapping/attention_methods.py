"""Which attention functions can be put into a model, and what each of them has to know about it."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention

from softgate._checks import check_number
from softgate._math import masks
from softgate.errors import ArgumentValueError, check_choice
from softgate.registry import Method
from softgate.swapping.names import callable_name, check_accepts, check_callable, family, is_json, unknown_name

#: Other names of a method, with the options that make it so.
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "clipped": ("clipped_softmax", {}),
    "lssar": ("softplus", {}),
    "lssa": ("softplus", {"reweight_power": None}),
}
#: Methods whose weights depend on a length that must not move between training, prefill and decoding: the option that
#: takes it, and the options that make it unnecessary.
LENGTH_OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sigmoid": ("seq_len", ("bias",)),
    "clipped_softmax": ("max_seq_len", ("gamma",)),
}
#: Options a method gets where the user says nothing: clipped softmax has no default, and this is the paper's choice.
DEFAULTS: dict[str, dict[str, Any]] = {"clipped_softmax": {"alpha": 4.0}}
#: Methods without scores, to which a factor of the scores means nothing.
WITHOUT_SCALE = ("norm_aware_linear",)
_GATE_OPTIONS = ("granularity", "scale")
#: What a model passes to its attention itself.
_FROM_THE_MODEL = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")

Kind = Literal["attention", "normalizer", "gated"]


@dataclass(frozen=True)
class AttentionChoice:
    """An attention function with its options.

    Attributes:
        name: name that finds it again, or what to call a user's own function.
        kind: ``"attention"``, ``"normalizer"`` (a map of score rows) or ``"gated"`` (softmax, then a gate).
        function: called like scaled_dot_product_attention.
        options: keyword arguments, those that follow from the model left out.
        named: whether ``name`` finds it again, which saving needs.
    """

    name: str
    kind: Kind
    function: Callable[..., Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    named: bool = True

    @property
    def implementation(self) -> str:
        """Its key in the attention interface of transformers; options enter as a checksum."""
        key = f"softgate:{'normalizer=' if self.kind == 'normalizer' else ''}{self.name}"
        if not self.named or not is_json(self.options):
            return f"{key}#{id(self):x}"  # the registered function keeps this object alive, so no other gets the key
        if not self.options:
            return key
        text = json.dumps(self.options, sort_keys=True)
        return f"{key}#{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def with_length(self, length: int | None) -> dict[str, Any]:
        """The options, with ``length`` filled in where the method needs a fixed length and none was given."""
        options = dict(self.options)
        option, instead = LENGTH_OPTIONS.get(self.name, (None, ()))
        if self.kind != "attention" or not self.named or option is None or option in options:
            return options
        if any(options.get(name) not in (None, "neg_log_n") for name in instead):
            return options
        if length is None:
            raise ArgumentValueError(
                f"attention={self.name!r} depends on a fixed length and this model does not state one: pass "
                f"attention_options={{{option!r}: N}} with the length it is trained at"
            )
        return {**options, option: length}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, length: int | None = None, **masked: Any) -> Tensor:
        """Attention output (B, H, T, Dv); ``masked`` as for scaled_dot_product_attention."""
        if self.named and self.name in WITHOUT_SCALE:
            masked["scale"] = None
        return self.function(query, key, value, **masked, **self.with_length(length))

    def weights(self, query: Tensor, key: Tensor, *, length: int | None = None, **masked: Any) -> Tensor:
        """Attention weights (B, H, T, S), for looking at: attention is linear in the values, so values I give them."""
        keys = key.shape[-2]
        eye = torch.eye(keys, dtype=key.dtype, device=key.device).expand(*key.shape[:2], keys, keys)
        return self.attend(query, key, eye, length=length, **{**masked, "dropout_p": 0.0})


def attention_methods() -> dict[str, Method]:
    """Attention functions of the library that a model can get, by short name ("sigmoid" for sigmoid_attention)."""
    found = family("attention", "attention")
    return {name.removesuffix("_attention"): record for name, record in found.items() if _needs_no_more(record)}


def _needs_no_more(record: Method) -> bool:
    """Whether the function can be called with query, key and value alone; a gate or the like needs its own module."""
    parameters = list(inspect.signature(record.function).parameters.values())[3:]
    return all(parameter.default is not parameter.empty for parameter in parameters)


def attention_names() -> list[str]:
    """Every name that ``attention=`` takes."""
    found = attention_methods()
    return sorted({"softmax", "gated", *found, *(alias for alias, (name, _) in ALIASES.items() if name in found)})


def normalizer_methods() -> dict[str, Method]:
    """Maps from scores to non-negative weights, by name."""
    return {name: record for name, record in family("normalizers", "row_map").items() if record.output_range[0] >= 0.0}


def choose_attention(attention: str | Callable[..., Tensor], options: Mapping[str, Any]) -> AttentionChoice:
    """The choice behind ``attention=``: a name or a function called like scaled_dot_product_attention."""
    if not isinstance(attention, str):
        check_callable("attention", attention, "or a function called like scaled_dot_product_attention")
        check_accepts("attention", attention, options, given=3, taken=_FROM_THE_MODEL)
        return AttentionChoice(callable_name(attention), "attention", attention, dict(options), named=False)
    name = attention.removeprefix("softgate:").removeprefix("softgate_").removesuffix("_attention")
    if name == "gated":
        return _choose_gated(options)
    if name == "softmax":
        return AttentionChoice("softmax", "attention", softmax_attention, dict(options))
    name, fixed = ALIASES.get(name, (name, {}))
    found = attention_methods()
    if name not in found:
        unknown_name("attention", attention, attention_names(), "a function called like scaled_dot_product_attention")
    check_accepts("attention", found[name].function, options, given=3, taken=_FROM_THE_MODEL)
    chosen = {**fixed, **options}
    defaults = DEFAULTS.get(name, {})
    if not any(instead in chosen for instead in (*defaults, *LENGTH_OPTIONS.get(name, ("", ()))[1])):
        chosen = {**defaults, **chosen}
    return AttentionChoice(name, "attention", found[name].function, chosen)


def choose_normalizer(normalizer: str | Callable[..., Tensor], options: Mapping[str, Any]) -> AttentionChoice:
    """The choice behind ``normalizer=`` where attention weights are concerned: ``map(scores, dim, **options) @ v``."""
    if not isinstance(normalizer, str):
        check_callable("normalizer", normalizer, "or a function called like torch.softmax: f(scores, dim)")
        name, function = callable_name(normalizer), normalizer
    else:
        found = normalizer_methods()
        if normalizer not in found:
            unknown_name("normalizer", normalizer, found, "a function called like torch.softmax: f(scores, dim)")
        name, function = normalizer, found[normalizer].function
    check_accepts("normalizer", function, options, given=2)
    return AttentionChoice(
        name, "normalizer", NormalizedAttention(function), dict(options), named=isinstance(normalizer, str)
    )


def _choose_gated(options: Mapping[str, Any]) -> AttentionChoice:
    for name in options:
        check_choice("attention_options", name, _GATE_OPTIONS)
    check_choice("granularity", options.get("granularity", "elementwise"), ("elementwise", "headwise"))
    check_number("scale", options.get("scale", 2.0), low=0.0, low_open=True, high_open=True)
    # Softmax comes from the model's own implementation, so that a gate of 1 changes no bit of the output.
    return AttentionChoice("gated", "gated", scaled_dot_product_attention, dict(options))


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
    """Plain softmax attention of this library; fully masked rows give 0."""
    from softgate.attention import gated_attention

    return gated_attention(query, key, value, None, *rest, **options)


@dataclass(frozen=True)
class NormalizedAttention:
    """Attention with any map of score rows in the place of softmax; called like scaled_dot_product_attention."""

    normalizer: Callable[..., Tensor]

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        **options: Any,
    ) -> Tensor:
        """Map the rows of masked scores to weights and average the values; a row without any key gives 0."""
        masks.check_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        mask = masks.resolve_mask(attn_mask, query, key, is_causal)
        scores = masks.attention_scores(query, key, scale, mask)
        if mask.allowed is not None:
            # Rows without any key are mapped unmasked and zeroed afterwards: not every map takes an all -inf row.
            some = mask.allowed.any(-1, keepdim=True)
            scores = scores.masked_fill(~mask.allowed & some, float("-inf"))
        weights = masks.masked_weights(self.normalizer(scores, -1, **options), mask.allowed)
        if dropout_p > 0.0:
            weights = dropout(weights, dropout_p)
        values = masks.expand_kv_heads(value, query.shape[-3]).to(weights.dtype)
        return (weights @ values).to(query.dtype)


def gate_factor(logits: Tensor, scale: float) -> Tensor:
    """``scale · sigmoid(logits)``, float32 for 16-bit logits; 1 exactly at logits 0 and scale 2."""
    wide = logits.float() if logits.itemsize == 2 else logits
    return scale * wide.sigmoid()
