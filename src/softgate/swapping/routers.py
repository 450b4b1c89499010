"""Exchange how a mixture of experts picks its experts.

transformers has no interface for routers. The router keeps its class (a subclass of it), its weight and its place, so
recorded logits and auxiliary losses keep working; only what happens after the logits is exchanged.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from softgate.errors import ArgumentValueError, StateError
from softgate.swapping.names import check_accepts, check_callable, room, unknown_name
from softgate.swapping.selftest import frozen
from softgate.swapping.undo import Undo

_ALSO = (
    "a function f(router_logits (N, E), top_k) -> (scores (N, top_k), indices (N, top_k)), or an nn.Module (class) "
    "called with the hidden states (N, D) that returns (router_logits, scores, indices)"
)
_TESTED_TOKENS = 7


class RoutedBy(nn.Module):
    """What a router becomes: its own logits with another choice, or another router altogether."""

    softgate_router: Any
    weight: Tensor

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Router logits (N, E), scores (N, top_k) and expert indices (N, top_k) of hidden states (…, D)."""
        hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
        if isinstance(self.softgate_router, nn.Module):
            return self.softgate_router(hidden)
        logits = linear(hidden, self.weight)
        scores, indices = self.softgate_router(logits, self.top_k)
        return logits, scores.to(logits.dtype), indices


@functools.cache
def routed_class(cls: Any) -> type[nn.Module]:
    """The subclass of a router's class that routes by ``softgate_router``."""
    return type(f"Softgate{cls.__name__}", (RoutedBy, cls), {"__module__": __name__})


def router_names() -> list[str]:
    """Names that ``router=`` takes: functions of ``softgate.routing`` that fit the contract."""
    return sorted(_named())


def swap_router(model: nn.Module, router: Any, options: Mapping[str, Any], undo: Undo) -> None:
    """Let every top-k router of ``model`` route by ``router``; each is tried on random hidden states first."""
    build = _builder(router, options)
    found = [(name, module) for name, module in model.named_modules() if type(module).__name__.endswith("TopKRouter")]
    if not found:
        raise StateError(
            f"{type(model).__name__} has no router that could be exchanged; supported are the TopKRouter modules of "
            "transformers whose forward returns (router_logits, scores, indices), as in Qwen3-MoE and Mixtral"
        )
    module: Any
    for name, module in found:
        with frozen(module):
            _check_contract(name, module, original=True)
        cls: Any = type(module)
        undo.set(module, "softgate_router", build(module))
        undo.set(module, "__class__", routed_class(cls))
        with frozen(module):
            _check_contract(name, module, original=False)


def _check_contract(name: str, module: Any, *, original: bool) -> None:
    """Raise unless the router gives logits, scores and distinct expert indices of the right shapes."""
    who = f"{type(module).__name__} ({name})" if original else f"router= in {name}"
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not isinstance(getattr(module, "top_k", None), int):
        raise StateError(f"{who} has no weight (experts, features) and top_k: its routing cannot be exchanged")
    experts, features = weight.shape
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(_TESTED_TOKENS, features, generator=generator).to(weight)
    result = module(hidden)
    shapes = [tuple(part.shape) for part in result] if _tensors(result) else type(result).__name__
    wanted = [(_TESTED_TOKENS, experts), (_TESTED_TOKENS, module.top_k), (_TESTED_TOKENS, module.top_k)]
    if shapes != wanted:
        raise StateError(f"{who} must return (router_logits, scores, indices) of shapes {wanted}, got {shapes}")
    logits, scores, indices = result
    if indices.dtype is not torch.int64 or bool((indices < 0).any()) or bool((indices >= experts).any()):
        raise ArgumentValueError(f"{who} must give int64 expert indices in [0, {experts - 1}], got {indices.dtype}")
    if bool((indices.sort(-1).values.diff(dim=-1) == 0).any()):
        raise ArgumentValueError(f"{who} chose one expert twice for a token")
    if not bool(scores.isfinite().all()):
        raise ArgumentValueError(f"{who} gave scores that are not finite")
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(-1), torch.ones(_TESTED_TOKENS).to(logits), atol=1e-4):
        # The auxiliary loss of transformers applies a softmax to what it takes for logits.
        raise ArgumentValueError(f"{who} returned probabilities in the place of router_logits")


def _tensors(result: Any) -> bool:
    return isinstance(result, tuple) and all(isinstance(part, Tensor) for part in result)


def _named() -> dict[str, Callable[..., Any]]:
    """Routers by name: what the room ``softgate.routing`` offers in its table ``TOP_K_ROUTERS``."""
    routing = room("routing")
    return {} if routing is None else dict(getattr(routing, "TOP_K_ROUTERS", {}))


def _builder(router: Any, options: Mapping[str, Any]) -> Callable[[Any], Any]:
    if isinstance(router, str):
        named = _named()
        if router not in named:
            unknown_name("router", router, named, _ALSO)
        router = named[router]
    check_callable("router", router, _ALSO)
    if isinstance(router, nn.Module):
        if options:
            raise StateError("router_options are for a name, a class or a function; the module has its own")
        return lambda gate: copy.deepcopy(router).to(gate.weight)
    check_accepts("router", router, options, given=3 if isinstance(router, type) else 2)
    if isinstance(router, type):

        def construct(gate: Any) -> Any:
            experts, features = gate.weight.shape
            return router(features, experts, gate.top_k, **options).to(gate.weight)

        return construct
    return lambda gate: functools.partial(router, **options)
