"""Inputs on which a transformers model is watched before and after a swap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import ArgumentTypeError, StateError
from softgate.swapping.attention_interface import _register, base_function, mask_function
from softgate.swapping.selftest import Outputs, Probe

_LENGTH = 6
_PAD = 2


@dataclass
class Watch:
    """What was seen of the attention calls while a model ran.

    Attributes:
        modules: every module that called the attention interface, in order of the first call.
        heads: its number of query heads and of value features.
        outputs: the outputs (B, T, H, D) of the last run.
    """

    modules: dict[str, nn.Module] = field(default_factory=dict)
    heads: dict[str, tuple[int, int]] = field(default_factory=dict)
    outputs: Outputs = field(default_factory=list)


@contextmanager
def watching(model: Any) -> Iterator[Watch]:
    """Route the attention of every part of ``model`` past a :class:`Watch`; results stay what they were."""
    seen = Watch()
    names = {id(module): name for name, module in model.named_modules()}
    saved = [(config, config._attn_implementation) for config in configurations(model)]

    def route(base: str) -> str:
        def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Any:
            name = names.get(id(module), type(module).__name__)
            seen.modules[name], seen.heads[name] = module, (query.shape[1], value.shape[-1])
            out, weights = base_function(base, module)(module, query, key, value, *rest, **options)
            seen.outputs.append((name, out.detach().clone()))
            return out, weights

        key = f"softgate:watch+{base}"
        _register(key, attend, mask_function(base))
        return key

    try:
        for config, base in saved:
            config._attn_implementation_internal = route(base)
        yield seen
    finally:
        for config, base in saved:
            config._attn_implementation_internal = base


def configurations(model: Any) -> list[Any]:
    """Every distinct configuration object that ``model``'s parts read their attention implementation from."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
    return list(found.values())


def probes(model: Any, sample: dict[str, Any] | None) -> list[Probe]:
    """The changes that ``model`` must not see from everywhere; one with an unrestricted change for images."""
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    if device.type == "meta":
        raise StateError("the model is on the meta device: load its weights first, a swap tests that nothing leaks")
    if sample is not None:
        return [_any_change(sample, generator)]
    name = model.main_input_name
    if name == "pixel_values":
        return [_any_change({"pixel_values": _images(model, generator).to(device)}, generator)]
    if name != "input_ids":
        raise ArgumentTypeError(
            f"{type(model).__name__} takes {name!r}, for which no test input is known: pass sample={{...}}, keyword "
            "arguments for one forward call"
        )
    return [
        Probe(
            hidden,
            {k: v.to(device) for k, v in before.items()},
            {k: v.to(device) for k, v in after.items()},
            own=(before[stream] != after[stream]).to(device),
        )
        for hidden, stream, before, after in _text_changes(model, generator)
    ]


def _text_changes(
    model: Any, generator: torch.Generator
) -> Iterator[tuple[str, str, dict[str, Tensor], dict[str, Tensor]]]:
    """What is hidden, the input that changes, the inputs before and after."""
    config = model.config.get_text_config()
    special = _special_ids(config)
    usable = torch.tensor([i for i in range(min(config.vocab_size, 1000)) if i not in special])

    def draw(length: int) -> tuple[Tensor, Tensor]:
        """Token ids (2, length), and other ids in the same places."""
        index = torch.randint(len(usable), (2, length), generator=generator)
        return usable[index], usable[(index + 1) % len(usable)]

    keep = torch.ones(2, _LENGTH, dtype=torch.long)
    keep[0, :_PAD] = 0  # padded at the left, as decoders are
    keep[1, -_PAD:] = 0  # padded at the right, as encoders are
    tokens, changed = draw(_LENGTH)
    padding = torch.where(keep.bool(), tokens, changed)
    if not config.is_encoder_decoder:
        last = torch.cat([tokens[:, :-1], changed[:, -1:]], 1)
        yield "future tokens", "input_ids", {"input_ids": tokens}, {"input_ids": last}
        masked = {"attention_mask": keep}
        yield "padding", "input_ids", {"input_ids": tokens, **masked}, {"input_ids": padding, **masked}
        return
    target, changed = draw(_LENGTH - 1)  # another length: tells outputs of encoder and decoder apart
    last = torch.cat([target[:, :-1], changed[:, -1:]], 1)
    source = {"input_ids": tokens, "attention_mask": keep}
    yield (
        "future tokens",
        "decoder_input_ids",
        {**source, "decoder_input_ids": target},
        {**source, "decoder_input_ids": last},
    )
    target_only = {"decoder_input_ids": target, "attention_mask": keep}
    yield "padding", "input_ids", {"input_ids": tokens, **target_only}, {"input_ids": padding, **target_only}


def _special_ids(config: Any) -> set[int]:
    """Ids that some models treat apart: padding, beginning and end, one id or several each."""
    found: set[int] = set()
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        ids = getattr(config, name, None)
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return found


def _images(model: Any, generator: torch.Generator) -> Tensor:
    config = model.config
    size = config.image_size if isinstance(config.image_size, list | tuple) else (config.image_size,) * 2
    images = torch.randn(2, config.num_channels, *size, generator=generator)
    return images.to(next(model.parameters()).dtype)


def _any_change(sample: dict[str, Any], generator: torch.Generator) -> Probe:
    """Noise in the floating-point inputs (token ids shifted by one), which every position may see."""

    def change(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype is torch.bool:
            return value
        if value.is_floating_point():
            return value + torch.randn(value.shape, generator=generator).to(value)
        return value

    return Probe("the input", sample, {name: change(value) for name, value in sample.items()})
