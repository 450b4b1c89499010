"""Models of transformers: attention through the attention interface, gates through hooks, losses and routers."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from torch import Tensor, nn

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.swapping.attention_interface import GATE_ARGUMENT, register
from softgate.swapping.attention_methods import AttentionChoice
from softgate.swapping.hf_probes import Watch, configurations, probes, watching
from softgate.swapping.selftest import Outputs, Probe, check_equal, check_finite, check_reach, frozen, reach
from softgate.swapping.undo import Undo

GATE_NAME = "softgate_gate"


def is_transformers_model(model: Any) -> bool:
    """Whether ``model`` is a PreTrainedModel; transformers is not imported to find out."""
    if "transformers" not in sys.modules:
        return False
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def swap_attention(model: Any, choice: AttentionChoice, undo: Undo, sample: dict[str, Any] | None) -> None:
    """Give every attention of ``model`` the method ``choice``; raises before anything that would leak is kept."""
    if not model._can_set_attn_implementation():
        raise StateError(
            f"{type(model).__name__} does not call its attention through transformers' AttentionInterface, so its "
            "attention cannot be exchanged"
        )
    what, body = f"{choice.kind if choice.kind == 'normalizer' else 'attention'}={choice.name!r}", model.base_model
    tests = probes(body, sample)
    with frozen(model), watching(model) as seen:
        original = [reach(lambda inputs: _run(body, seen, inputs), probe) for probe in tests]
        widths = _hidden_widths(body, seen, tests[0])
    if not seen.modules:
        raise StateError(f"{type(model).__name__} never called the attention interface: nothing to exchange")
    for config in configurations(model):
        undo.set(config, "_attn_implementation_internal", register(choice, config._attn_implementation))
    if choice.kind == "gated":
        for name, module in seen.modules.items():
            _add_gate(name, module, widths[name], seen.heads[name], choice, undo)
    try:
        _prove(what, model, body, tests, original)
    except (ArgumentTypeError, ArgumentValueError, StateError) as error:
        raise StateError(f"{what} cannot be put into {type(model).__name__}: {error}") from error


def _prove(what: str, model: Any, body: Any, tests: list[Probe], original: list[list[tuple[str, Tensor]]]) -> None:
    with frozen(model), watching(model) as seen:
        for probe, expected in zip(tests, original, strict=True):
            check_reach(what, probe, expected, reach(lambda inputs: _run(body, seen, inputs), probe))
            check_finite(what, seen.outputs)
        # Training adds dropout to the attention, which not every method has; better refused now than at the first step.
        for module in list(seen.modules.values()):
            module.train()
        _run(body, seen, tests[0].before)
    if tests[0].hidden == "future tokens" and not model.config.is_encoder_decoder:
        with frozen(model):
            _check_cache(what, body, tests[0].before["input_ids"])


def _run(body: Any, seen: Watch, inputs: dict[str, Any]) -> Outputs:
    seen.outputs = []
    body(**inputs)
    return seen.outputs


def _check_cache(what: str, body: Any, ids: Tensor) -> None:
    """Decoding the last token from a cache must give what computing all tokens at once gives."""
    prefix = body(input_ids=ids[:, :-1], use_cache=True)
    cache = getattr(prefix, "past_key_values", None)
    if cache is None:  # an encoder
        return
    step = body(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
    whole = body(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
    check_equal(what, "decoding from a cache", step, whole)


def _hidden_widths(body: Any, seen: Watch, probe: Probe) -> dict[str, int]:
    """Width of the hidden states that each attention module is called with."""
    widths: dict[str, int] = {}
    handles = []
    for name, module in seen.modules.items():

        def note(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            widths[name] = _hidden(args, kwargs).shape[-1]

        handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        _run(body, seen, probe.before)
    finally:
        for handle in handles:
            handle.remove()
    return widths


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _add_gate(
    name: str, module: nn.Module, width: int, heads: tuple[int, int], choice: AttentionChoice, undo: Undo
) -> None:
    """Give an attention module a linear map to gate logits; zero at first, so that every gate starts at scale / 2."""
    kinds = {parameter.kind for parameter in inspect.signature(type(module).forward).parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        raise StateError(f"{type(module).__name__} ({name}) does not pass arguments on to its attention function")
    count, features = heads
    elementwise = choice.options.get("granularity", "elementwise") == "elementwise"
    like = next(module.parameters())
    gate = nn.Linear(
        width, count * features if elementwise else count, bias=False, device=like.device, dtype=like.dtype
    )
    nn.init.zeros_(gate.weight)
    undo.set(module, GATE_NAME, gate.train(module.training))
    undo.hook(module.register_forward_pre_hook(_pass_gate, with_kwargs=True))


def _pass_gate(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    gate: nn.Module = getattr(module, GATE_NAME)
    return args, {**kwargs, GATE_ARGUMENT: gate(_hidden(args, kwargs))}
