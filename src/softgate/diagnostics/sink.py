"""The attention sink: how much weight the first token receives, and what goes with it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from softgate.diagnostics._running import eval_mode, run_model
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, bad_type

__all__ = ["AttentionRecord", "SinkReport", "attention_sink", "record_attention"]

_BINS = 20
#: Attention implementations of transformers that do not return their weights.
_WEIGHTLESS = ("sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")


class SinkReport(TypedDict):
    """Result of :func:`attention_sink`.

    Attributes:
        first_token_share: mean attention weight on the first token, over layers, heads and later queries.
        per_layer: the same for each layer.
        max_activation: largest absolute hidden state after a layer, mean over layers.
        gate_mean: mean gate score; None without gates.
        gate_hist: share of gate scores in 20 equal bins of [0, 1] (scores outside count in the end bins); empty
            without gates.
    """

    first_token_share: float
    per_layer: list[float]
    max_activation: float
    gate_mean: float | None
    gate_hist: list[float]


class AttentionRecord(NamedTuple):
    """What one layer did in one forward pass.

    Attributes:
        name: the attention module's name in the model (the layer's number for transformers models).
        weights: (B, H, T, T) attention weights before the gate.
        gate: (B, heads or 1, T, features or 1) gate scores, None without a gate.
        hidden: (B, T, D) hidden states after the layer.
    """

    name: str
    weights: Tensor
    gate: Tensor | None
    hidden: Tensor


@torch.no_grad()
def attention_sink(model: nn.Module, inputs: Tensor | Mapping[str, Any], *, valid: Tensor | None = None) -> SinkReport:
    """Measure the attention sink of ``model`` on ``inputs``.

    ``first_token_share`` is the mean of A[i, first] over layers, heads and queries i after the first valid token (whose
    own share is 1 by necessity). Uniform causal attention over T tokens gives (H_T - 1)/(T - 1), with H_T the
    harmonic number: 0.060 for T = 64. Weights of an attention without normalisation are taken as they are.

    Args:
        model: contains modules with ``attention_weights`` (:class:`softgate.attention.GatedAttention` has it), or is a
            transformers model.
        inputs: token ids (B, T) or whatever the model takes as its argument; a mapping is passed as keyword arguments.
        valid: (B, T) bool, True = real token; a transformers ``attention_mask`` in ``inputs`` serves if omitted.

    Raises:
        ArgumentTypeError: ``model`` or ``inputs`` of a wrong type.
        ArgumentValueError: fewer than two valid tokens in every sequence, or ``valid`` of a wrong shape.
        StateError: no attention weights can be had from this model.

    Paper: arXiv 2505.06708, section 4.2 and Table 4 ("F-Attn", "M-Act", mean gate score).
    """
    if valid is None and isinstance(inputs, Mapping) and isinstance(inputs.get("attention_mask"), Tensor):
        valid = inputs["attention_mask"].bool()
    records = record_attention(model, inputs)
    shape = records[0].hidden.shape[:2]
    valid = torch.ones(shape, dtype=torch.bool) if valid is None else valid
    if not isinstance(valid, Tensor) or valid.dtype is not torch.bool:
        bad_type("valid", valid, "a bool tensor")
    if valid.shape != shape:
        raise ArgumentValueError(f"valid must have shape (batch, length) = {tuple(shape)}, got {tuple(valid.shape)}")
    per_layer = [_first_token_share(record.weights, valid.to(record.weights.device)) for record in records]
    gates = [_valid_gates(record.gate, valid) for record in records if record.gate is not None]
    scores = torch.cat(gates) if gates else None
    return SinkReport(
        first_token_share=sum(per_layer) / len(per_layer),
        per_layer=per_layer,
        max_activation=sum(float(r.hidden[valid.to(r.hidden.device)].abs().max()) for r in records) / len(records),
        gate_mean=None if scores is None else float(scores.mean()),
        gate_hist=[] if scores is None else _histogram(scores),
    )


@torch.no_grad()
def record_attention(model: nn.Module, inputs: Tensor | Mapping[str, Any]) -> list[AttentionRecord]:
    """Run ``model`` once in eval mode and return what every attention layer did, in order.

    Arguments and errors as for :func:`attention_sink`.
    """
    if not isinstance(model, nn.Module):
        bad_type("model", model, "a torch.nn.Module")
    if not isinstance(inputs, Tensor | Mapping):
        bad_type("inputs", inputs, "a tensor or a mapping of keyword arguments")
    with eval_mode(model):
        modules = [(n, m) for n, m in model.named_modules() if callable(getattr(m, "attention_weights", None))]
        if modules:
            records = _record_modules(model, modules, inputs)
        elif hasattr(getattr(model, "config", None), "num_hidden_layers"):
            records = _record_transformers(model, inputs)
        else:
            raise StateError(
                f"{type(model).__name__} has no attention weights to look at: it holds no module with a method "
                "'attention_weights' (such as GatedAttention) and is not a transformers model"
            )
    for record in records:
        if record.weights.ndim != 4 or record.weights.shape[-1] != record.weights.shape[-2]:
            raise ArgumentValueError(
                f"attention weights of {record.name} must be (batch, heads, length, length) self-attention of one "
                f"forward pass, got {tuple(record.weights.shape)}"
            )
    return records


def _record_modules(
    model: nn.Module, modules: list[tuple[str, nn.Module]], inputs: Tensor | Mapping[str, Any]
) -> list[AttentionRecord]:
    """Recompute weights and gates from the arguments that each module sees; hidden states are its parent's output."""
    seen: dict[str, tuple[Tensor, Tensor | None]] = {}
    hidden: dict[str, Tensor] = {}

    def look(name: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("cache") is not None:
            raise ArgumentTypeError("the model must be run without a cache, got one")
        kwargs = {key: value for key, value in kwargs.items() if key != "cache"}
        states = args[0] if args else kwargs["hidden"]
        gate = module.gate_scores(states) if hasattr(module, "gate_scores") else None
        seen[name] = (module.attention_weights(*args, **kwargs), gate)

    def keep(name: str, output: Any) -> None:
        hidden[name] = output[0] if isinstance(output, tuple) else output

    with ExitStack() as stack:
        for name, module in modules:
            parent = model.get_submodule(name.rpartition(".")[0]) if "." in name else module
            before = module.register_forward_pre_hook(
                lambda m, args, kwargs, name=name: look(name, m, args, kwargs), with_kwargs=True
            )
            after = parent.register_forward_hook(lambda _m, _args, output, name=name: keep(name, output))
            stack.callback(before.remove)
            stack.callback(after.remove)
        run_model(model, inputs)
    if not seen:
        raise StateError("no attention module took part in the forward pass")
    return [AttentionRecord(name, weights, gate, hidden[name]) for name, (weights, gate) in seen.items()]


def _record_transformers(model: Any, inputs: Tensor | Mapping[str, Any]) -> list[AttentionRecord]:
    """Ask a transformers model for its attentions; the hidden states are the outputs of its layers."""
    count = model.config.num_hidden_layers
    layers = next((m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count), None)
    if layers is None:
        raise StateError(f"{type(model).__name__} has no list of {count} layers")
    hidden: list[Tensor] = []
    before = model.config._attn_implementation
    with ExitStack() as stack:
        if before in _WEIGHTLESS:
            model.set_attn_implementation("eager")
            stack.callback(model.set_attn_implementation, before)
        for layer in layers:
            hook = layer.register_forward_hook(
                lambda _m, _args, output: hidden.append(output[0] if isinstance(output, tuple) else output)
            )
            stack.callback(hook.remove)
        output = run_model(model, inputs, output_attentions=True)
    weights = getattr(output, "attentions", None)
    if not weights or any(w is None for w in weights):
        raise StateError(f"{type(model).__name__} returned no attention weights with implementation {before!r}")
    return [AttentionRecord(str(i), w, None, h) for i, (w, h) in enumerate(zip(weights, hidden, strict=True))]


def _first_token_share(weights: Tensor, valid: Tensor) -> float:
    """Mean of A[b, h, i, first_b] over heads and the valid queries i after the first valid token of each sequence."""
    first = valid.float().argmax(-1)
    later = valid & (torch.arange(valid.shape[1], device=valid.device) > first[:, None])
    if not bool(later.any()):
        raise ArgumentValueError("inputs must hold at least two valid tokens in some sequence, got none that do")
    on_first = weights.gather(-1, first[:, None, None, None].expand(*weights.shape[:3], 1))[..., 0]
    return float(on_first.float().mean(1)[later].mean())


def _valid_gates(gate: Tensor, valid: Tensor) -> Tensor:
    """Gate scores of valid tokens, flat, in float32."""
    return gate.float().movedim(2, 1)[valid.to(gate.device)].flatten()


def _histogram(scores: Tensor) -> list[float]:
    counts = torch.histc(scores.clamp(0.0, 1.0).cpu(), bins=_BINS, min=0.0, max=1.0)
    return (counts / counts.sum()).tolist()
