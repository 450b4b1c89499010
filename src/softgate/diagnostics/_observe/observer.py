"""Watching one forward pass of any module: hooks say where one is, a function mode sees the attention calls.

Nothing is left on the model between passes: :meth:`Observer.arm` puts the hooks on, :meth:`Observer.disarm` takes every
one off again.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from softgate.diagnostics._observe.attention import (
    LARGEST_WEIGHTS,
    AttentionSums,
    not_hidden,
    query_rows,
    score_rows,
    spread,
    visible_keys,
)
from softgate.diagnostics._observe.hidden import ActivationSums, LogitSums, RouterSums, logits_of, routed
from softgate.diagnostics._observe.interface import route_attention
from softgate.diagnostics._running import first_tensor
from softgate.diagnostics.activation_outliers import layer_names
from softgate.errors import StateError
from softgate.routing.gates import Gate

__all__: list[str] = []

_SOFTMAX = (torch.softmax, Tensor.softmax, functional.softmax)
_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")


@dataclass(frozen=True)
class Sampling:
    """How much of a batch is looked at.

    Attributes:
        rows: queries per sequence and attention.
        sequences: sequences per batch.
        tokens: tokens per batch for kurtosis and logits.
    """

    rows: int = 32
    sequences: int = 4
    tokens: int = 1024


class Observer:
    """Collects the figures of the forward passes of ``model`` while it is armed.

    Args:
        model: the module whose forward passes count.
        sampling: how much of each batch is looked at.
        once: disarm after the first pass.
        done: called after each observed pass, when nothing is left on the model if ``once``.
    """

    def __init__(
        self, model: nn.Module, sampling: Sampling, *, once: bool = False, done: Callable[[], None] | None = None
    ) -> None:
        self.model, self.sampling = model, sampling
        self._once, self._done = once, done
        self._hooks = ExitStack()
        self._mode: _AttentionMode | None = None
        self._stack: list[tuple[str, nn.Module]] = []
        self.keep: Tensor | None = None
        self.clear()

    def clear(self) -> None:
        """Forget all figures."""
        self.passes = 0
        self.attention: dict[str, AttentionSums] = {}
        self.activations: dict[str, ActivationSums] = {}
        self.routers: dict[str, RouterSums] = {}
        self.logits = LogitSums()
        self.unseen: dict[str, str] = {}

    @property
    def armed(self) -> bool:
        """Whether hooks are on the model."""
        return self._mode is not None

    def arm(self) -> None:
        """Put the hooks on."""
        if self.armed:
            return
        self._mode = _AttentionMode(self)
        if "torch._dynamo" in sys.modules:  # compiled code cannot be looked into: it runs eagerly for this pass
            self._hooks.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            layers = set(layer_names(self.model))
        except StateError:
            layers = set()
        for name, module in self.model.named_modules():
            if name and next(module.children(), None) is not None:
                self._on(module.register_forward_pre_hook(self._enter(name)))
                self._on(module.register_forward_hook(self._leave, always_call=True))
            if callable(getattr(module, "attention_weights", None)):
                self._on(module.register_forward_pre_hook(self._own_weights(name), with_kwargs=True))
            if name in layers:
                self._on(module.register_forward_hook(self._hidden(name)))
            if isinstance(module, Gate) or "Router" in type(module).__name__:
                self._on(module.register_forward_hook(self._route(name)))
        route_attention(self, self._hooks)
        self._on(self.model.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True))
        self._on(self.model.register_forward_hook(self._end, always_call=True))

    def disarm(self) -> None:
        """Take every hook off again, whatever happened in between."""
        if self._mode is not None:
            self._mode.close()
        self._mode = None
        self._hooks.close()
        self._stack.clear()

    def _on(self, handle: Any) -> None:
        self._hooks.callback(handle.remove)

    def _begin(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self.keep = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
        self._stack[:] = [("", self.model)]
        if self._mode is not None:
            self._mode.open()

    def _end(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if self._mode is not None:
            self._mode.close()
        failed = output is None
        if not failed:
            self.passes += 1
            logits = logits_of(output)
            if logits is not None:
                with torch.no_grad():
                    self.logits.add(logits, self.keep, self.sampling.tokens)
        if self._once:
            self.disarm()
        if self._done is not None and not failed:
            self._done()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _args: Any) -> None:
            self._stack.append((name, module))

        return hook

    def _leave(self, module: nn.Module, _args: Any, _output: Any) -> None:
        while len(self._stack) > 1 and self._stack.pop()[1] is not module:
            pass

    @property
    def here(self) -> tuple[str, nn.Module]:
        """Name and module of the innermost module with parts that is running."""
        return self._stack[-1] if self._stack else ("", self.model)

    def _sums(self, name: str) -> AttentionSums:
        return self.attention.setdefault(name, AttentionSums(name))

    def _hidden(self, name: str) -> Callable[..., None]:
        @torch.no_grad()
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            hidden = first_tensor(output)
            if hidden is not None and hidden.ndim >= 2:
                sums = self.activations.setdefault(name, ActivationSums(name))
                sums.add(hidden, self.keep, self.sampling.tokens)

        return hook

    def _route(self, name: str) -> Callable[..., None]:
        @torch.no_grad()
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            found = routed(output)
            if found is None:
                self.unseen[name] = "its answer does not say which experts were chosen"
            else:
                self.routers.setdefault(name, RouterSums(name)).add(*found, self.keep)

        return hook

    def _own_weights(self, name: str) -> Callable[..., None]:
        """For attention of this library, which says its weights itself: all rows, so only where they fit."""

        @torch.no_grad()
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
            if hidden is None or kwargs.get("cache") is not None:
                return
            heads, length = int(getattr(module, "num_heads", 1)), hidden.shape[1] if hidden.ndim > 2 else len(hidden)
            if len(hidden) * heads * length**2 > LARGEST_WEIGHTS:
                self.unseen[name] = f"its {length} × {length} weights are too many to hold"
                return
            weights = module.attention_weights(*args, **{k: v for k, v in kwargs.items() if k != "cache"})
            self.see_weights(name, weights, weights.shape[-2] == weights.shape[-1])

        return hook

    def see_weights(
        self,
        name: str,
        weights_BHTS: Tensor,
        square: bool,
        rows: list[int] | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Take in the weights of all queries, or of the given ``rows`` and with their mask (B or 1, H or 1, R, S)."""
        picked = query_rows(weights_BHTS.shape[-2], self.sampling.rows) if rows is None else rows
        for index in spread(len(weights_BHTS), self.sampling.sequences):
            part = weights_BHTS[index] if rows is not None else weights_BHTS[index][:, picked]
            if mask is None:
                allowed = visible_keys(part, picked)
            else:
                allowed = not_hidden(mask[index if len(mask) > 1 else 0]).expand_as(part)
            self._sums(name).add_weights(part, allowed, picked, square)

    def see_scores(
        self,
        query_BHTD: Tensor,
        key_BGSD: Tensor,
        mask: Tensor | None = None,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> None:
        """Take in an attention by its queries and keys."""
        queries, square = query_BHTD.shape[-2], query_BHTD.shape[-2] == key_BGSD.shape[-2]
        if not queries or not key_BGSD.shape[-2]:
            return
        rows = query_rows(queries, self.sampling.rows)
        for index in spread(len(query_BHTD), self.sampling.sequences):
            scores, allowed = score_rows(query_BHTD, key_BGSD, index, rows, mask=mask, is_causal=is_causal, scale=scale)
            self._sums(self.here[0]).add_scores(scores, allowed, rows, square)

    def see_softmax(self, scores: Tensor) -> None:
        """Take in scores (B, H, T, S) that are about to pass a softmax over their last axis."""
        queries, keys = scores.shape[-2:]
        rows = query_rows(queries, self.sampling.rows) if queries else []
        for index in spread(len(scores), self.sampling.sequences) if rows and keys else ():
            part = scores[index][:, rows]
            allowed = not_hidden(part)
            self._sums(self.here[0]).add_scores(part, allowed, rows, queries == keys)


class _AttentionMode(TorchFunctionMode):
    """Sees every call of torch's attention functions and every softmax while it is open; results are untouched."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer
        self._open = False

    def open(self) -> None:
        """Start to look."""
        if not self._open:
            self.__enter__()
            self._open = True

    def close(self) -> None:
        """Stop to look."""
        if self._open:
            self._open = False
            self.__exit__(None, None, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._open and func in _SEEN and not callable(getattr(self._observer.here[1], "attention_weights", None)):
            with torch.no_grad():
                _SEEN[func](self._observer, args, kwargs)
        return func(*args, **kwargs)


def _see_sdpa(observer: Observer, args: Any, kwargs: dict[str, Any]) -> None:
    given = {**dict(zip(_SDPA, args, strict=False)), **kwargs}
    query, key, mask = given["query"], given["key"], given.get("attn_mask")
    if query.ndim > 4 and mask is not None and mask.ndim > 4:
        observer.unseen[observer.here[0]] = "its mask has more than four dimensions"
        return
    query, key = _four_dimensions(query), _four_dimensions(key)
    observer.see_scores(query, key, mask, bool(given.get("is_causal", False)), given.get("scale"))


def _four_dimensions(x: Tensor) -> Tensor:
    return x.flatten(0, -4) if x.ndim > 4 else x[(None,) * (4 - x.ndim)]


def _see_softmax(observer: Observer, args: Any, kwargs: dict[str, Any]) -> None:
    scores = args[0] if args else kwargs["input"]
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if not isinstance(scores, Tensor) or not scores.is_floating_point() or dim not in (-1, scores.ndim - 1):
        return
    is_attention = any(mark in type(observer.here[1]).__name__ for mark in ("Attention", "Attn"))
    if scores.ndim == 4 or (scores.ndim == 3 and is_attention):
        observer.see_softmax(scores if scores.ndim == 4 else scores[:, None])


def _see_multihead(observer: Observer, args: Any, kwargs: dict[str, Any]) -> None:
    given = inspect.signature(functional.multi_head_attention_forward).bind(*args, **kwargs)
    given.apply_defaults()
    a = given.arguments
    query, key, heads = a["query"], a["key"], a["num_heads"]
    if query.ndim == 2:
        query, key = query[:, None], key[:, None]
    width = query.shape[-1]
    if a["use_separate_proj_weight"]:
        of_query, of_key = a["q_proj_weight"], a["k_proj_weight"]
    else:
        of_query, of_key = a["in_proj_weight"][:width], a["in_proj_weight"][width : 2 * width]
    bias = a["in_proj_bias"]
    q = functional.linear(query, of_query, None if bias is None else bias[:width])
    k = functional.linear(key, of_key, None if bias is None else bias[width : 2 * width])
    q_BHTD, k_BHSD = (x.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for x in (q, k))
    mask = _blocked(a["attn_mask"], a["key_padding_mask"], heads)
    observer.see_scores(q_BHTD, k_BHSD, mask)


def _blocked(attn_mask: Tensor | None, padding: Tensor | None, heads: int) -> Tensor | None:
    """One added mask of floats from torch.nn's two, in which True means "may not be seen"."""
    total = None
    for mask in (attn_mask, None if padding is None else padding.reshape(-1, 1, 1, padding.shape[-1])):
        if mask is None:
            continue
        if mask.dtype is torch.bool:
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill(mask, float("-inf"))
        mask = mask.unflatten(0, (-1, heads)) if mask.ndim == 3 else mask
        total = mask if total is None else total + mask
    return total


_SEEN: dict[Any, Callable[[Observer, Any, dict[str, Any]], None]] = {
    functional.scaled_dot_product_attention: _see_sdpa,
    functional.multi_head_attention_forward: _see_multihead,
    **dict.fromkeys(_SOFTMAX, _see_softmax),
}
