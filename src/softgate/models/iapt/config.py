"""Sizes and parts of an instruction-aware prompt adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from softgate._checks import check_sizes
from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice
from softgate.models.iapt.generator import ACTIVATIONS, activation

__all__ = ["IAPTConfig"]


@dataclass(frozen=True)
class IAPTConfig:
    """Sizes and parts of the prompts of :func:`softgate.models.get_iapt_model`.

    Attributes:
        num_tokens: soft prompts per layer.
        bottleneck: width m of the prompt generators. With 16 an adapter has about as many parameters as LoRA of
            rank 8 on queries and values.
        share: which layers use the same down- and up-projection: ``"none"``, ``"all"``, or the number of successive
            layers in a group. The pool's queries and the activation stay those of each layer.
        layers: ``"all"``, or the indices of the layers that get prompts.
        activation: ``"rational"``, which is learned, or ``"gelu"``, ``"relu"``, ``"tanh"``, ``"silu"``,
            ``"identity"``.
        degrees: of the rational activation.
        version: denominator of the rational activation, see :func:`softgate.activations.rational`.
        activation_init: what the rational activation starts as.
        activation_training: ``"joint"`` learns the rational activations with the rest, ``"fixed"`` leaves them as they
            start; with ``"bilevel"`` only the rest learns at first and :meth:`IAPTModel.learn` says whose turn it is.
        prompt: ``"instruction"``; or ``"static"`` for learned prompts that are the same for every input, the baseline
            (with ``layers=[0]`` that is prompt tuning, with all layers P-tuning v2).

    Raises:
        ArgumentTypeError: a value has the wrong type.
        ArgumentValueError: a value is not allowed.

    Example:
        >>> IAPTConfig(bottleneck=8, share=2).num_tokens
        4

    Paper: Zhu et al., IAPT, arXiv 2405.18203, sec. 3.
    """

    num_tokens: int = 4
    bottleneck: int = 16
    share: str | int = "none"
    layers: str | tuple[int, ...] = "all"
    activation: str = "rational"
    degrees: tuple[int, int] = (5, 4)
    version: str = "B"
    activation_init: str = "gelu"
    activation_training: str = "joint"
    prompt: str = "instruction"

    def __post_init__(self) -> None:
        check_sizes(num_tokens=self.num_tokens, bottleneck=self.bottleneck)
        if isinstance(self.share, str):
            check_choice("share", self.share, ("none", "all"))
        else:
            check_sizes(share=self.share)
        object.__setattr__(self, "layers", _checked_layers(self.layers))
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("activation_training", self.activation_training, ("joint", "bilevel", "fixed"))
        check_choice("prompt", self.prompt, ("instruction", "static"))
        activation("rational", self.degrees, self.version, self.activation_init)  # raises what it finds wrong
        object.__setattr__(self, "degrees", tuple(self.degrees))

    def layer_indices(self, count: int) -> tuple[int, ...]:
        """The layers that get prompts, in a model that has ``count``."""
        if isinstance(self.layers, str):
            return tuple(range(count))
        if max(self.layers) >= count:
            raise ArgumentValueError(f"layers must lie below the model's {count} layers, got {list(self.layers)}")
        return self.layers

    def as_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> IAPTConfig:
        """Inverse of :meth:`as_json`; unknown names are refused."""
        known = {entry.name for entry in fields(cls)}
        if not isinstance(values, Mapping):
            bad_type("config", values, "an object")
        if set(values) - known:
            raise ArgumentValueError(f"config must have no entries but {sorted(known)}, got {sorted(values)}")
        return cls(**values)


def _checked_layers(layers: Any) -> str | tuple[int, ...]:
    if isinstance(layers, str):
        check_choice("layers", layers, ("all",))
        return layers
    if not isinstance(layers, tuple | list) or any(type(index) is not int for index in layers):
        bad_type("layers", layers, "'all' or a list of ints")
    if not layers or min(layers) < 0 or len(set(layers)) < len(layers):
        bad_value("layers", layers, "'all' or different indices from 0 on, at least one")
    return tuple(sorted(layers))
