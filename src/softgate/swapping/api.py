"""``softgate.swap`` and ``softgate.unswap``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

from softgate.errors import ArgumentValueError, StateError, bad_type
from softgate.swapping import attention_methods, timm_models, torch_nn, transformers_models
from softgate.swapping.activations import swap_activation
from softgate.swapping.attention_methods import AttentionChoice, choose_attention, choose_normalizer
from softgate.swapping.losses import swap_loss
from softgate.swapping.names import check_options, is_json
from softgate.swapping.normalizers import softmax_places, swap_softmax_modules
from softgate.swapping.routers import swap_router
from softgate.swapping.undo import Undo

__all__ = ["swap", "swaps", "unswap"]

RECORD = "softgate_swaps"
PLACES = ("attention", "router", "activation", "loss", "normalizer")
#: What swap works on, for error messages and for the page docs/swap.md, which a test compares.
SUPPORTED = (
    "models of transformers whose attention goes through its AttentionInterface (tested: Llama, Qwen3, Qwen3-MoE, "
    "GPT-2, BERT, ViT, T5)",
    "timm.layers.Attention (timm's ViT, DeiT, …)",
    "torch.nn.MultiheadAttention (alone or in nn.Transformer layers)",
)
M = TypeVar("M", bound=nn.Module)


@dataclass
class Record:
    """What was swapped into a model and how to take it back; kept as the attribute ``softgate_swaps``.

    Attributes:
        applied: place -> the argument that was given and its options, in order.
        added: names of the tensors that the swaps added to the state dict.
        undo: the changes.
    """

    applied: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict)
    added: set[str] = field(default_factory=set)
    undo: Undo = field(default_factory=Undo)


def swap(
    model: M,
    attention: str | Callable[..., Tensor] | None = None,
    router: str | Callable[..., Any] | None = None,
    activation: str | Callable[..., Any] | None = None,
    loss: str | Callable[..., Tensor] | None = None,
    normalizer: str | Callable[..., Tensor] | None = None,
    *,
    attention_options: Mapping[str, Any] | None = None,
    router_options: Mapping[str, Any] | None = None,
    activation_options: Mapping[str, Any] | None = None,
    loss_options: Mapping[str, Any] | None = None,
    normalizer_options: Mapping[str, Any] | None = None,
    sample: dict[str, Any] | None = None,
) -> M:
    """Put methods of this library into an existing model, in place and reversibly.

    Before the model is handed back, its attention runs on a small batch and is compared with the original: no future
    token and no padding may be seen, and decoding from a cache must equal computing everything at once. A swap that
    fails this, or that the method cannot express (a linear attention under an arbitrary mask), is refused with the
    reason, and the model is left as it was.

    ``attention="gated"`` keeps the model's softmax and adds a gate ``scale · sigmoid(W h)`` per head and feature. W is
    0 at first and scale 2, so the swapped model equals the original exactly and learns to gate from there. Every other
    method replaces the weights themselves: a model trained with softmax needs fine-tuning afterwards.

    Args:
        model: a model of transformers or timm, or any module with nn.MultiheadAttention inside.
        attention: ``"gated"``, ``"softmax"``, the name of a function of ``softgate.attention`` without its ending
            (``"sigmoid"``, ``"softplus"``, …), or a function called like scaled_dot_product_attention.
        router: a function ``f(router_logits, top_k) -> (scores, indices)`` or an nn.Module for the TopKRouter modules
            of transformers' mixtures of experts.
        activation: a name from ``softgate.activations``, an nn.Module (class) or a function, for the nonlinearities
            of feed-forward layers.
        loss: ``"stablemax"``, another name from ``softgate.losses`` or a function called like cross_entropy, for the
            loss that a transformers model computes from its labels.
        normalizer: a name from ``softgate.normalizers`` or a function ``f(scores, dim)``, in the place of softmax in
            attention and of every nn.Softmax.
        attention_options: keyword arguments of the attention function; for ``"gated"``: ``granularity``
            (``"elementwise"`` or ``"headwise"``) and ``scale``.
        router_options: keyword arguments of the router.
        activation_options: keyword arguments of the activation.
        loss_options: keyword arguments of the loss.
        normalizer_options: keyword arguments of the normalizer.
        sample: keyword arguments for one forward call, for models whose input is neither tokens nor images.

    Returns:
        ``model`` itself.

    Raises:
        ArgumentTypeError: wrong types.
        ArgumentValueError: an unknown name (the error lists the known ones) or option.
        StateError: the place is swapped already, the model has nothing to swap there, or the self-test failed.

    Example:
        >>> import softgate, torch
        >>> layer = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        >>> softgate.swap(layer, attention="gated").softgate_gate.weight.abs().sum().item()
        0.0
        >>> type(softgate.unswap(layer)).__name__
        'MultiheadAttention'
    """
    if not isinstance(model, nn.Module):
        loaded = f" (load it first: transformers.AutoModel.from_pretrained({model!r}))" if type(model) is str else ""
        bad_type("model", model, f"an nn.Module{loaded}")
    given = dict(zip(PLACES, (attention, router, activation, loss, normalizer), strict=True))
    extra = dict(
        zip(
            PLACES,
            (attention_options, router_options, activation_options, loss_options, normalizer_options),
            strict=True,
        )
    )
    options = {place: check_options(place, value) for place, value in extra.items()}
    wanted = {place: value for place, value in given.items() if value is not None}
    for place in PLACES:
        if place not in wanted and options[place]:
            raise ArgumentValueError(f"{place}_options needs {place}=")
    if not wanted:
        raise ArgumentValueError(f"say what to swap: at least one of {', '.join(f'{place}=' for place in PLACES)}")
    record = _record(model, wanted)
    fresh, before = Undo(), set(model.state_dict())
    try:
        for place, value in wanted.items():
            _SWAPS[place](model, value, options[place], fresh, sample)
    except BaseException:
        fresh.rollback()
        raise
    record.undo.extend(fresh)
    record.added |= set(model.state_dict()) - before
    record.applied.update({place: (value, options[place]) for place, value in wanted.items()})
    vars(model)[RECORD] = record
    if transformers_models.is_transformers_model(model):
        from softgate.swapping.manifest import saves_its_manifest

        saves_its_manifest(model, record.undo)
    return model


def unswap(model: M) -> M:
    """Take back everything :func:`swap` did to ``model``, in place.

    Modules, parameters, functions and configuration are the objects they were; what a swap added (gates, trained or
    not) is gone. Training of the model's own parameters stays.

    Args:
        model: what was given to :func:`swap`, or a deep copy of it.

    Returns:
        ``model`` itself.

    Raises:
        StateError: nothing is swapped.
    """
    record = vars(model).get(RECORD) if isinstance(model, nn.Module) else None
    if record is None:
        raise StateError("nothing is swapped into this model: unswap takes the module that swap was called on")
    record.undo.rollback()
    del vars(model)[RECORD]
    return model


def added_tensors(model: nn.Module) -> list[str]:
    """Names of the tensors that swaps added to the state dict of ``model``, sorted."""
    record = vars(model).get(RECORD)
    return [] if record is None else sorted(record.added)


def swaps(model: nn.Module) -> dict[str, tuple[Any, dict[str, Any]]]:
    """What is swapped into ``model``: place -> (what was given, its options); empty if nothing is."""
    record = vars(model).get(RECORD)
    return {} if record is None else dict(record.applied)


def _record(model: nn.Module, wanted: Mapping[str, Any]) -> Record:
    """The record of ``model``, after checking that the wanted places are free in it and in its parts."""
    for name, module in model.named_modules():
        if name and RECORD in vars(module):
            raise StateError(f"{name} inside this model is swapped already: unswap it first, or swap {name} itself")
    record: Record = vars(model).get(RECORD) or Record()
    taken = [place for place in wanted if place in record.applied]
    if {"attention", "normalizer"} <= {*wanted, *record.applied}:
        raise StateError("attention= and normalizer= both replace the weights of attention: only one of them at a time")
    if taken:
        raise StateError(
            f"{', '.join(taken)} is swapped already ({record.applied[taken[0]][0]!r}): call softgate.unswap(model) "
            "first"
        )
    return record


def _attention(model: Any, value: Any, options: dict[str, Any], undo: Undo, sample: dict[str, Any] | None) -> None:
    swap_weights(model, choose_attention(value, options), undo, sample)


def swap_weights(model: Any, choice: AttentionChoice, undo: Undo, sample: dict[str, Any] | None) -> None:
    """Exchange the attention of every supported module; raises if there is none or one that is not known."""
    if transformers_models.is_transformers_model(model):
        transformers_models.swap_attention(model, choice, undo, sample)
        return
    found, unknown = attention_modules(model)
    if not found or unknown:
        listed = f"of an unknown class: {', '.join(unknown)}" if unknown else "that swap knows"
        raise StateError(
            f"{type(model).__name__} has {'attention' if unknown else 'no attention'} {listed}. Supported are: "
            + "; ".join(SUPPORTED)
        )
    torch_nn.leave_nested_tensors(model, undo)
    for name, module in found:
        if timm_models.is_timm_attention(module):
            timm_models.swap_attention(name, module, choice, timm_models.context_length(model), undo)
        else:
            torch_nn.swap_attention(name, module, choice, None, undo)


def attention_modules(model: nn.Module) -> tuple[list[tuple[str, nn.Module]], list[str]]:
    """The supported attention modules inside ``model``, and the classes that look like attention and are not known."""
    found = [(name, module) for name, module in model.named_modules() if _is_known(module)]
    unknown = set()
    for name, module in model.named_modules():
        if transformers_models.is_transformers_model(module):
            unknown.add(f"{type(module).__name__} ({name}: call swap on this part itself)")
        elif any(mark in type(module).__name__ for mark in ("Attention", "Attn")) and not any(
            _is_known(part)
            for part in module.modules()  # a block that holds a supported module is none itself
        ):
            unknown.add(type(module).__name__)
    return found, sorted(unknown)


def _is_known(module: nn.Module) -> bool:
    return type(module) is nn.MultiheadAttention or timm_models.is_timm_attention(module)


def _normalizer(model: Any, value: Any, options: dict[str, Any], undo: Undo, sample: dict[str, Any] | None) -> None:
    choice = choose_normalizer(value, options)
    places = softmax_places(model)
    function = choice.function
    assert isinstance(function, attention_methods.NormalizedAttention)
    swap_softmax_modules(places, function.normalizer, options, undo)
    if not places or transformers_models.is_transformers_model(model) or attention_modules(model)[0]:
        swap_weights(model, choice, undo, sample)


_SWAPS: dict[str, Callable[[Any, Any, dict[str, Any], Undo, dict[str, Any] | None], None]] = {
    "attention": _attention,
    "normalizer": _normalizer,
    "router": lambda model, value, options, undo, _: swap_router(model, value, options, undo),
    "activation": lambda model, value, options, undo, _: swap_activation(model, value, options, undo),
    "loss": lambda model, value, options, undo, _: swap_loss(model, value, options, undo),
}


def describe(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What a manifest holds of the swaps: names and JSON values only.

    Raises:
        StateError: something without a name, or an option that is not JSON, was swapped in.
    """
    described = {}
    for place, (value, options) in swaps(model).items():
        if not isinstance(value, str):
            raise StateError(
                f"{place}= was given an object of your own, which a manifest cannot hold: only methods with a name can "
                "be saved"
            )
        if not is_json(options):
            raise StateError(f"{place}_options are not plain JSON values: {options!r}")
        described[place] = {"name": value, "options": options}
    return described
