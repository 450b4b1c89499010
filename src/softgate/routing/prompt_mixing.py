"""Mixing the text features of several prompts for every image: which prompts, how much of each, what to learn from."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate._math.masks import accumulation_dtype, without_autocast
from softgate.dispatch import transform_reason
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value
from softgate.registry import method
from softgate.routing._choice import check_count, largest
from softgate.routing.top_k import topk_softmax

__all__ = ["hard_prompt_gate_target", "mix_text_features", "mixture_logits"]

# B images, G groups of prompts (the experts), C classes, D width of the joint embedding.
_Sample = tuple[tuple[Any, ...], dict[str, Any]]
_Bad = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]


def _draw(dtype: torch.dtype, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _gate(dtype: torch.dtype, generator: torch.Generator, *shape: int) -> Tensor:
    """Logits an eighth apart: finite differences must not change the choice."""
    return ((torch.rand(shape, generator=generator).argsort(-1).argsort(-1) - shape[-1] / 2) / 8).to(dtype)


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In their common dtype, at least float32."""
    dtype = accumulation_dtype(functools.reduce(torch.promote_types, (t.dtype for t in tensors)))
    return tuple(t.to(dtype) for t in tensors)


def _check_features(gate_logits: Any, text: Any, name: str = "text") -> None:
    check_float_tensor("gate_logits", gate_logits)
    check_float_tensor(name, text)
    if gate_logits.ndim != 2:
        bad_value("gate_logits", tuple(gate_logits.shape), "of shape (B, G)")
    if text.ndim != 3 or text.shape[0] != gate_logits.shape[1]:
        bad_value(name, tuple(text.shape), f"of shape (G, C, D) with G = {gate_logits.shape[1]}, as gate_logits has")


def _dense_weights(gate_logits_BG: Tensor, k: int) -> Tensor:
    """(B, G): softmax of the k largest logits, 0 elsewhere."""
    weights, chosen = topk_softmax(gate_logits_BG, k, order="topk_first")
    return torch.zeros_like(gate_logits_BG).scatter(-1, chosen, weights)


def _mix_samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    for images, groups, classes, k in ((3, 4, 5, 2), (2, 3, 4, 3), (4, 2, 3, 1), (0, 3, 2, 2), (2, 1, 3, 1)):
        yield (_gate(dtype, generator, images, groups), _draw(dtype, generator, groups, classes, 6), k), {}


def _mix_bad() -> Iterator[_Bad]:
    gate, text = torch.ones(2, 3), torch.ones(3, 4, 5)
    yield (gate, text, 4), {}, ArgumentValueError, "k"
    yield (gate, text, 0), {}, ArgumentValueError, "k"
    yield (gate, text, 2.0), {}, ArgumentTypeError, "k"
    yield (gate, text[:2], 2), {}, ArgumentValueError, "text"
    yield (gate, text[0], 2), {}, ArgumentValueError, "text"
    yield (gate[0], text, 2), {}, ArgumentValueError, "gate_logits"


@method(
    site="routing",
    family="custom",
    paper="mixture-of-prompts",
    source="class features of an image: softmax over its top-k groups of their normalised text features",
    samples=_mix_samples,
    bad_inputs=_mix_bad,
)
def mix_text_features(gate_logits: Tensor, text: Tensor, k: int = 2) -> Tensor:
    """Class features of every image: the text features of its k best groups, weighted by the softmax of their logits.

    The mixture is not normalised again: where groups disagree about a class it is shorter, and so are its logits.
    Groups that are not chosen get a gradient of exactly 0.

    Args:
        gate_logits: (B, G), one row of router logits per image.
        text: (G, C, D), unit-length text features of C classes under G prompts.
        k: how many groups are mixed, 1 ≤ k ≤ G; of equal logits the first group wins.

    Returns:
        (B, C, D); float32 for 16-bit inputs.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes that do not fit, k out of range.

    Example:
        >>> text = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[-1.0, 0.0]]])
        >>> mix_text_features(torch.tensor([[1.0, 1.0, 0.0]]), text).tolist()
        [[[0.5, 0.5]]]

    Paper: Mixture of Prompt Learning for Vision Language Models, arXiv 2409.12011, section on the routing of prompts.
    """
    _check_features(gate_logits, text)
    check_same_device(gate_logits=gate_logits, text=text)
    gate_BG, text_GCD = _wide(gate_logits, text)
    with without_autocast(gate_BG):
        return torch.einsum("bg,gcd->bcd", _dense_weights(gate_BG, k), text_GCD)


def _logit_samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    for images, groups, classes, k in ((3, 4, 5, 2), (2, 3, 4, 3), (4, 2, 3, 1), (0, 3, 2, 2)):
        image, text = _draw(dtype, generator, images, 6), _draw(dtype, generator, groups, classes, 6)
        yield (image, text, _gate(dtype, generator, images, groups), k), {"scale": 2.5}


def _logit_bad() -> Iterator[_Bad]:
    image, text, gate = torch.ones(2, 5), torch.ones(3, 4, 5), torch.ones(2, 3)
    yield (image, text, gate, 4), {}, ArgumentValueError, "k"
    yield (image[:, :4], text, gate), {}, ArgumentValueError, "image"
    yield (image[0], text, gate), {}, ArgumentValueError, "image"
    yield (image[:1], text, gate), {}, ArgumentValueError, "image"
    yield (image, text[:2], gate), {}, ArgumentValueError, "text"
    yield (image.long(), text, gate), {}, ArgumentTypeError, "image"
    yield (image, text, gate), {"scale": float("inf")}, ArgumentValueError, "scale"
    yield (image, text, gate), {"scale": torch.ones(2)}, ArgumentValueError, "scale"


def _check_scale(scale: Any) -> None:
    if not isinstance(scale, Tensor):
        check_number("scale", scale, low=0.0, low_open=True, high_open=True)
    elif scale.ndim or not scale.is_floating_point():
        bad_value("scale", tuple(scale.shape), "a positive number or a scalar floating-point tensor")


@method(
    site="routing",
    family="custom",
    paper="mixture-of-prompts",
    source="class logits s <f, T> of the mixture, by linearity without the mixture",
    samples=_logit_samples,
    bad_inputs=_logit_bad,
)
def mixture_logits(image: Tensor, text: Tensor, gate_logits: Tensor, k: int = 2, scale: float | Tensor = 1.0) -> Tensor:
    """Class logits ``scale · Σ_g π_g ⟨image, text_g⟩`` of every image with its own mixture of prompts.

    Equal to the product of ``image`` with :func:`mix_text_features`, but it needs B·G·C numbers where the mixture has
    B·C·D.

    Args:
        image: (B, D), unit-length image features.
        text: (G, C, D), unit-length text features of C classes under G prompts.
        gate_logits: (B, G), router logits.
        k: how many groups are mixed, 1 ≤ k ≤ G.
        scale: positive factor of the logits, a number or a scalar tensor; CLIP's is ``exp(logit_scale)``.

    Returns:
        (B, C); float32 for 16-bit inputs.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes that do not fit, k or ``scale`` out of range.

    Example:
        >>> text = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[-1.0, 0.0]]])
        >>> mixture_logits(torch.tensor([[1.0, 0.0]]), text, torch.tensor([[1.0, 1.0, 0.0]]), scale=10.0)
        tensor([[5.]])

    Paper: Mixture of Prompt Learning for Vision Language Models, arXiv 2409.12011, section on the routing of prompts.
    """
    _check_features(gate_logits, text)
    check_float_tensor("image", image)
    _check_scale(scale)
    check_same_device(image=image, text=text, gate_logits=gate_logits)
    if image.shape != (gate_logits.shape[0], text.shape[-1]):
        bad_value("image", tuple(image.shape), f"of shape (B, D) = ({gate_logits.shape[0]}, {text.shape[-1]})")
    image_BD, text_GCD, gate_BG = _wide(image, text, gate_logits)
    with without_autocast(image_BD):
        similarity_BGC = torch.einsum("bd,gcd->bgc", image_BD, text_GCD)
        return torch.einsum("bg,bgc->bc", _dense_weights(gate_BG, k), similarity_BGC) * scale


def _target_samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    for images, groups, classes, kwargs in ((4, 5, 3, {}), (3, 4, 2, {"k": 1}), (2, 1, 2, {"k": 1}), (0, 3, 2, {})):
        labels = torch.randint(classes, (images,), generator=generator)
        yield (_draw(dtype, generator, images, 6), _draw(dtype, generator, groups, classes, 6), labels), kwargs
    labels = torch.randint(3, (3,), generator=generator)
    image, prototypes = _draw(dtype, generator, 3, 6), _draw(dtype, generator, 4, 3, 6)
    yield (image, prototypes, labels), {"k": 3, "increment": 1.5}


def _target_bad() -> Iterator[_Bad]:
    image, prototypes, labels = torch.ones(2, 5), torch.ones(3, 4, 5), torch.zeros(2, dtype=torch.int64)
    yield (image, prototypes, labels), {"k": 4}, ArgumentValueError, "k"
    yield (image, prototypes, labels + 4), {}, ArgumentValueError, "labels"
    yield (image, prototypes, labels - 1), {}, ArgumentValueError, "labels"
    yield (image, prototypes, labels.int()), {}, ArgumentTypeError, "labels"
    yield (image, prototypes, labels[:1]), {}, ArgumentValueError, "labels"
    yield (image, prototypes[0], labels), {}, ArgumentValueError, "prototypes"
    yield (image[:, :4], prototypes, labels), {}, ArgumentValueError, "image"
    yield (image, prototypes, labels), {"increment": -1.0}, ArgumentValueError, "increment"


def check_labels(labels: Any, images: int, classes: int) -> None:
    """Raise unless ``labels`` are int64 class indices (``images``,) below ``classes``."""
    if not isinstance(labels, Tensor):
        bad_type("labels", labels, "an int64 tensor")
    if labels.dtype is not torch.int64:
        raise ArgumentTypeError(f"labels must be an int64 tensor, got {labels.dtype}")
    if labels.shape != (images,):
        bad_value("labels", tuple(labels.shape), f"of shape ({images},)")
    # elsewhere the values are unknown (tracing) or reading them would stall the device; the indexing checks them there
    if labels.is_cpu and labels.numel() and transform_reason(labels) is None:
        low, high = (int(value) for value in labels.aminmax())
        if low < 0 or high >= classes:
            bad_value("labels", low if low < 0 else high, f"class indices in [0, {classes - 1}]")


@method(
    site="routing",
    family="custom",
    paper="mixture-of-prompts",
    source="hard-prompt-guided gating loss: soft target of the router",
    samples=_target_samples,
    bad_inputs=_target_bad,
    output_range=(0.0, 1.0),
    error_scale="tensor",
)
def hard_prompt_gate_target(
    image: Tensor, prototypes: Tensor, labels: Tensor, k: int = 2, increment: float = 10.0
) -> Tensor:
    """What the router shall say: the groups whose hard templates, for the true class, lie nearest to the image.

    ``softmax(u + increment · [g among the k largest of u])`` with ``u_g = ⟨n(image), prototype of g and the label⟩``.
    Cosines differ little, so that the k groups share nearly all of it in nearly equal parts.

    Args:
        image: (B, D), image features of any length (they are normalised here).
        prototypes: (G, C, D), unit-length features of the groups' hard templates for C classes.
        labels: (B,) int64, the true classes.
        k: how many groups the increment lifts, 1 ≤ k ≤ G.
        increment: how far, not negative.

    Returns:
        (B, G), rows that sum to one; float32 for 16-bit inputs. The choice of the groups has no gradient.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes that do not fit, a label, ``k`` or ``increment`` out of range.

    Example:
        >>> prototypes = torch.tensor([[[1.0, 0.0]], [[0.8, 0.6]], [[-1.0, 0.0]]])
        >>> hard_prompt_gate_target(torch.tensor([[2.0, 0.0]]), prototypes, torch.tensor([0])).round(decimals=3)
        tensor([[0.5500, 0.4500, 0.0000]])

    Paper: Mixture of Prompt Learning for Vision Language Models, arXiv 2409.12011, hard-prompt-guided gating loss.
    """
    check_float_tensor("image", image)
    check_float_tensor("prototypes", prototypes)
    if prototypes.ndim != 3:
        bad_value("prototypes", tuple(prototypes.shape), "of shape (G, C, D)")
    if image.ndim != 2 or image.shape[-1] != prototypes.shape[-1]:
        bad_value("image", tuple(image.shape), f"of shape (B, {prototypes.shape[-1]})")
    check_count("k", k, high=prototypes.shape[0], what=", the number of groups")
    check_number("increment", increment, low=0.0, high_open=True)
    check_labels(labels, image.shape[0], prototypes.shape[1])
    check_same_device(image=image, prototypes=prototypes, labels=labels)
    image_BD, prototypes_GCD = _wide(image, prototypes)
    with without_autocast(image_BD):
        own_GBD = prototypes_GCD.index_select(1, labels)
        similarity_BG = torch.einsum("bd,gbd->bg", functional.normalize(image_BD, dim=-1), own_GBD)
        lift_BG = torch.zeros_like(similarity_BG).scatter(-1, largest(similarity_BG, k), increment)
        return (similarity_BG + lift_BG).softmax(-1)


def text_supervision_loss(text: Tensor, prototypes: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """Mean cross-entropy by which every prompt's class features, (G, C, D), tell its group's prototypes apart."""
    logits_GCC = torch.einsum("gcd,ged->gce", text, prototypes) * scale
    classes = torch.arange(text.shape[1], device=text.device).expand(text.shape[:2])
    return functional.cross_entropy(logits_GCC.flatten(0, 1), classes.flatten())
