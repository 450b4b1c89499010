"""Running a dynamic network on one sample, with only the channels it has between layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from softgate.dynamic._conv_patterns import ADDITIONS, CHANNELWISE, CHANNELWISE_FUNCTIONS
from softgate.dynamic._gathered import Compact
from softgate.dynamic.dynamic_conv import DynamicConv2d


def spread(value: Any) -> Any:
    """Compact values inside ``value`` with their zeros put back."""
    if isinstance(value, Compact):
        return value.spread()
    if isinstance(value, tuple | list):
        return type(value)(spread(item) for item in value)
    if isinstance(value, dict):
        return {key: spread(item) for key, item in value.items()}
    return value


class CompactRun(fx.Interpreter):
    """Interpreter of a graph whose dynamic layers hand on :class:`Compact` states.

    What treats every channel by itself is applied to the channels that are there; a sum with a full tensor touches only
    these; everything else gets its zeros back.

    Args:
        graph: the network.
        plans: name of a dynamic layer -> how it runs.
    """

    def __init__(self, graph: fx.GraphModule, plans: Mapping[str, str]) -> None:
        super().__init__(graph)
        self.plans = plans

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module on states that may be compact."""
        module = self.submodules[target]
        if isinstance(module, DynamicConv2d):
            plan = self.plans[target]
            if plan == "native" and plan not in module.plans(args[0]):
                plan = "both"
            return module.compact(args[0], plan)
        if args and isinstance(args[0], Compact) and isinstance(module, CHANNELWISE):
            return args[0]._replace(x=module(args[0].x))
        return module(*spread(args), **spread(kwargs))

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function on states that may be compact."""
        if args and isinstance(args[0], Compact) and target in CHANNELWISE_FUNCTIONS:
            return args[0]._replace(x=target(args[0].x, *args[1:], **kwargs))
        if target in ADDITIONS and len(args) == 2 and not kwargs:
            first, second = args
            if isinstance(second, Compact) and isinstance(first, Tensor | Compact):
                first, second = second, first
            if isinstance(first, Compact) and isinstance(second, Tensor | Compact):
                other = spread(second)
                if other.shape == (1, first.channels, *first.x.shape[2:]):
                    return first.added_to(other)
        return target(*spread(args), **spread(kwargs))

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A method on states that may be compact."""
        if isinstance(args[0], Compact) and target in CHANNELWISE_FUNCTIONS:
            return args[0]._replace(x=getattr(args[0].x, target)(*args[1:], **kwargs))
        return super().call_method(target, spread(args), spread(kwargs))
