"""A CLIP whose prompts are learnt, several of them, and mixed for every image by a router."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from softgate._checks import check_float_tensor, check_number
from softgate._math.masks import without_autocast
from softgate.errors import ArgumentValueError, StateError, bad_type, bad_value, check_choice
from softgate.routing import _prompt_files
from softgate.routing._choice import check_count, widened
from softgate.routing._clip_encoders import block_norms, check_clip, encode_images
from softgate.routing._prompt_tokens import clean_names
from softgate.routing.prompt_bank import FullStop, PromptBank
from softgate.routing.prompt_mixing import (
    check_labels,
    hard_prompt_gate_target,
    mixture_logits,
    text_supervision_loss,
)
from softgate.routing.top_k import topk_softmax

__all__ = ["PromptMixture", "PromptMixtureOutput"]

_OPTIONS = (
    *("top_k", "correction", "text_temperature", "finetune_vision_ln", "text_weight", "gate_weight", "increment"),
    *("full_stop", "text_every", "text_noise", "recompute_text"),
)


class PromptMixtureOutput(dict[str, Tensor]):
    """What :class:`PromptMixture` returns: a dict with attributes, as the models of transformers return them.

    What was not computed is no entry, and None as an attribute.

    Attributes:
        loss: scalar, ``loss_cls + text_weight · loss_text + gate_weight · loss_gate``; without labels None.
        logits: (B, C).
        gate_logits: (B, G), before the choice.
        topk_indices: (B, k) int64, the chosen groups.
        topk_weights: (B, k), their weights.
        loss_cls: cross-entropy of the class logits.
        loss_text: mean cross-entropy between soft prompts and prototypes; None where it was not due or has no weight.
        loss_gate: cross-entropy of the gate logits against the groups of the nearest hard templates.
    """

    loss: Tensor | None
    logits: Tensor
    gate_logits: Tensor
    topk_indices: Tensor
    topk_weights: Tensor
    loss_cls: Tensor | None
    loss_text: Tensor | None
    loss_gate: Tensor | None

    def __getattr__(self, name: str) -> Any:
        if name not in PromptMixtureOutput.__annotations__:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        return self.get(name)


class PromptMixture(nn.Module):
    """MoCoOp: G soft prompts for a frozen CLIP, the best ``top_k`` of them mixed for every image.

    A linear router reads the image feature and weighs the class features of the prompts it chooses. Two supervisions
    keep what CLIP knows: the router must choose the groups whose hard templates lie nearest to the image for its true
    class, and every soft prompt must tell its group's prototypes apart, those of new classes included.

    The CLIP is frozen in place and kept in evaluation mode (without dropout); with ``finetune_vision_ln`` the layer
    norms of its image encoder stay trainable. Works with the Trainer of transformers; pass it an optimizer made from
    :meth:`trainable_parameters`.

    Args:
        clip: a ``transformers.CLIPModel``; of 16 bits or not. Router, softmax and losses are computed in float32.
        tokenizer: its tokenizer or processor.
        templates: G groups of templates, see :class:`softgate.routing.PromptBank`.
        classnames: the classes of the current task.
        all_classnames: all names that the text supervision shall protect, ``classnames`` among them; None for these.
        top_k: prompts per image.
        correction: learn one vector that is added to all text features.
        text_temperature: divides the cosines of the text loss; ``"clip"`` takes that of CLIP, ``1 / exp(logit_scale)``,
            and None, as the authors' code, leaves them in [-1, 1].
        finetune_vision_ln: train ``layer_norm1`` and ``layer_norm2`` of the blocks of the image encoder, which must
            have some.
        text_weight: weight α of the text loss; 0 leaves it and its passes through the encoder out.
        gate_weight: weight β of the gating loss.
        increment: by which the gating target lifts the nearest groups.
        full_stop: ``"always"``; or ``"code"``, as the authors' code, which ends the prompts of the classification pass
            without a full stop and needs a pass of its own for the text loss.
        text_every: compute the text loss at every n-th training step only.
        text_noise: standard deviation of normal noise on the class features, drawn at every second training step on
            average.
        recompute_text: keep no activations of the text encoder for the backward pass: less memory, a second pass.

    Attributes:
        bank: the :class:`softgate.routing.PromptBank`.
        router: linear map from D to G with bias, as torch initialises it.
        classnames: the classes of the logits.
        all_classnames: the classes of the text loss.

    Raises:
        ArgumentTypeError: wrong types.
        ArgumentValueError: numbers, names or templates that are not allowed; ``top_k`` above the number of groups;
            ``finetune_vision_ln`` without such layer norms.

    Example:
        >>> from transformers import AutoTokenizer, CLIPModel  # doctest: +SKIP
        >>> name = "openai/clip-vit-base-patch16"
        >>> clip, tokenizer = CLIPModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)  # doctest: +SKIP
        >>> model = PromptMixture(clip, tokenizer, [["a photo of a {}"], ["a sketch of a {}"]], ["cat", "dog"],
        ...                       all_classnames=["cat", "dog", "bird"])  # doctest: +SKIP
        >>> model(pixel_values, labels).loss.backward()  # doctest: +SKIP

    The target of the gating loss gets no gradient; in the authors' code its image features do.

    Paper: Mixture of Prompt Learning for Vision Language Models, arXiv 2409.12011; Frontiers in AI 8:1580973.
    """

    def __init__(
        self,
        clip: nn.Module,
        tokenizer: Any,
        templates: Sequence[Sequence[str]],
        classnames: Sequence[str],
        all_classnames: Sequence[str] | None = None,
        top_k: int = 2,
        correction: bool = True,
        text_temperature: float | Literal["clip"] | None = None,
        finetune_vision_ln: bool = True,
        *,
        text_weight: float = 5.0,
        gate_weight: float = 1.0,
        increment: float = 10.0,
        full_stop: FullStop = "always",
        text_every: int = 1,
        text_noise: float = 0.0,
        recompute_text: bool = False,
    ) -> None:
        super().__init__()
        check_clip(clip)
        for name, value in (("finetune_vision_ln", finetune_vision_ln), ("recompute_text", recompute_text)):
            if not isinstance(value, bool):
                bad_type(name, value, "a bool")
        if isinstance(text_temperature, str):
            check_choice("text_temperature", text_temperature, ("clip",))
        elif text_temperature is not None:
            check_number("text_temperature", text_temperature, low=0.0, low_open=True, high_open=True)
        self.text_temperature, self.finetune_vision_ln = text_temperature, finetune_vision_ln
        self.correction, self.full_stop = correction, full_stop
        self.text_weight = check_number("text_weight", text_weight, low=0.0, high_open=True)
        self.gate_weight = check_number("gate_weight", gate_weight, low=0.0, high_open=True)
        self.increment = check_number("increment", increment, low=0.0, high_open=True)
        self.text_noise = check_number("text_noise", text_noise, low=0.0, high_open=True)
        self.text_every, self.recompute_text = check_count("text_every", text_every), recompute_text
        names = clean_names(classnames)
        everything = names if all_classnames is None else clean_names(all_classnames, "all_classnames")
        missing = [name for name in names if name not in everything]
        if missing:
            raise ArgumentValueError(f"all_classnames must contain classnames, without {', '.join(map(repr, missing))}")
        self.bank = PromptBank(templates, everything, tokenizer, clip, correction=correction, full_stop=full_stop)
        self.top_k = check_count("top_k", top_k, high=self.bank.n_groups, what=", the number of groups of templates")
        self.clip = clip
        device, dtype = self.bank.prototypes.device, self.bank.context.dtype
        self.router = nn.Linear(self.bank.prototypes.shape[-1], self.bank.n_groups, device=device, dtype=dtype)
        self._freeze()
        self._cache: tuple[Any, list[Tensor], Tensor] | None = None
        self._steps = 0
        self.set_classes(names)

    def _freeze(self) -> None:
        norms = block_norms(self.clip) if self.finetune_vision_ln else {}
        if self.finetune_vision_ln and not norms:
            bad_value("finetune_vision_ln", True, "False for an image encoder without layer_norm1 and layer_norm2")
        self.clip.requires_grad_(False).eval()
        for norm in norms.values():
            norm.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of prompts and router; the CLIP stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    @property
    def all_classnames(self) -> tuple[str, ...]:
        """The classes of the text loss."""
        return self.bank.names

    def set_classes(self, names: Sequence[str]) -> None:
        """Classify among ``names`` from now on, with the prompts as they are; unknown ones join ``all_classnames``."""
        cleaned = clean_names(names, "names")
        self.bank.add_classes(cleaned, self.clip)
        self.classnames = cleaned
        self._cache = None

    def text_features(self, names: Sequence[str] | None = None) -> Tensor:
        """Unit-length features (G, C, D) of the soft prompts for ``names``, or for the current classes.

        Without gradients they are kept until a learnt tensor or the text encoder changes.
        """
        cleaned = self.classnames if names is None else clean_names(names, "names")
        found = self._features(cleaned, stop=False)
        return found if found.requires_grad else found.clone()  # an edit in place must not reach what is kept

    def _features(self, names: tuple[str, ...], stop: bool) -> Tensor:
        learnt = list(self.bank.parameters())
        if torch.is_grad_enabled() and any(p.requires_grad for p in learnt):
            return self.bank(self.clip, names, stop=stop, recompute=self.recompute_text)
        encoder: Any = self.clip.text_model
        frozen = [*encoder.parameters(), *self.clip.text_projection.parameters()]  # type: ignore[union-attr]
        key = (names, stop, learnt[0].device, tuple((id(p), p._version) for p in frozen))
        # compared by value: writing to `.data` leaves the version of a parameter as it was
        if self._cache is not None and self._cache[0] == key and all(map(torch.equal, self._cache[1], learnt)):
            return self._cache[2]
        with torch.inference_mode(False), torch.no_grad():
            found = self.bank(self.clip, names, stop=stop)
            self._cache = (key, [p.detach().clone() for p in learnt], found)
        return found

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Unit-length features (B, D) of images as the processor makes them."""
        check_float_tensor("pixel_values", pixel_values)
        if pixel_values.ndim != 4:
            bad_value("pixel_values", tuple(pixel_values.shape), "of shape (B, channels, height, width)")
        return functional.normalize(widened(encode_images(self.clip, pixel_values)), dim=-1)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> PromptMixtureOutput:
        """Class logits, and with labels the losses.

        Args:
            pixel_values: (B, channels, height, width) as the processor makes them.
            labels: (B,) int64, indices into :attr:`classnames`.

        Raises:
            ArgumentTypeError: wrong types or dtypes.
            ArgumentValueError: shapes that do not fit, a label out of range.
        """
        image = self.image_features(pixel_values)
        if labels is not None:
            check_labels(labels, image.shape[0], len(self.classnames))
        with_text = labels is not None and self._text_is_due()
        text, supervised = self._class_and_supervised(with_text)
        with without_autocast(image):
            gate_logits = self.router(image.to(self.router.weight.dtype))
            weights, indices = topk_softmax(gate_logits, self.top_k, order="topk_first")
            scale = self._scale()
            logits = mixture_logits(image, self._noisy(text), gate_logits, self.top_k, scale)
            losses = {} if labels is None else self._losses(image, gate_logits, logits, supervised, labels)
        found = {"loss": losses.get("loss"), "logits": logits, "gate_logits": gate_logits, "topk_indices": indices}
        found |= {"topk_weights": weights, **losses}
        return PromptMixtureOutput({name: value for name, value in found.items() if value is not None})

    def _text_is_due(self) -> bool:
        if not self.text_weight:
            return False
        step = self._steps
        self._steps += self.training
        return not self.training or step % self.text_every == 0

    def _class_and_supervised(self, with_text: bool) -> tuple[Tensor, Tensor | None]:
        """Features of the current classes and, for the text loss, of all classes; in one pass where one will do."""
        if not with_text:
            return self._features(self.classnames, stop=False), None
        everything = self._features(self.bank.names, stop=True)
        if self.classnames == self.bank.names:
            return everything, everything
        if self.full_stop == "always":
            return everything[:, self.bank.indices(self.classnames)], everything
        return self._features(self.classnames, stop=False), everything

    def _noisy(self, text: Tensor) -> Tensor:
        if not self.training or not self.text_noise or torch.rand(()) < 0.5:
            return text
        return text + self.text_noise * torch.randn_like(text)

    def _scale(self) -> Tensor:
        scale: Tensor = self.clip.logit_scale  # type: ignore[assignment]
        return widened(scale.detach()).exp()

    def _losses(
        self, image: Tensor, gate_logits: Tensor, logits: Tensor, supervised: Tensor | None, labels: Tensor
    ) -> dict[str, Tensor]:
        own = self.bank.prototypes[:, self.bank.indices(self.classnames)]
        target = hard_prompt_gate_target(image.detach(), own, labels, self.top_k, self.increment)
        images = max(labels.numel(), 1)  # a mean over no image is 0
        losses = {
            "loss_cls": functional.cross_entropy(logits, labels, reduction="sum") / images,
            "loss_gate": functional.cross_entropy(gate_logits, target, reduction="sum") / images,
        }
        total = losses["loss_cls"] + self.gate_weight * losses["loss_gate"]
        if supervised is not None:
            losses["loss_text"] = text_supervision_loss(supervised, self.bank.prototypes, self._text_scale())
            total = total + self.text_weight * losses["loss_text"]
        return {"loss": total, **losses}

    def _text_scale(self) -> float | Tensor:
        if self.text_temperature is None:
            return 1.0
        return self._scale() if self.text_temperature == "clip" else 1.0 / float(self.text_temperature)

    def trainable_parameters(self, lr: float, encoder_ratio: float = 0.1) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: prompts and router at ``lr``, layer norms at ``encoder_ratio · lr``."""
        check_number("lr", lr, low=0.0, high_open=True)
        check_number("encoder_ratio", encoder_ratio, low=0.0, high_open=True)
        groups = [{"params": [*self.bank.parameters(), *self.router.parameters()], "lr": lr}]
        norms = [p for p in self.clip.parameters() if p.requires_grad]
        return [*groups, {"params": norms, "lr": lr * encoder_ratio}] if norms else groups

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what was learnt and the settings: ``prompt_mixture.safetensors`` and ``.json``, not the CLIP."""
        settings = {name: getattr(self, name) for name in _OPTIONS}
        settings |= {"templates": self.bank.templates, "classnames": self.classnames}
        settings |= {"all_classnames": self.all_classnames}
        _prompt_files.write(folder, settings, self._learnt())

    def _learnt(self) -> dict[str, Tensor]:
        norms = block_norms(self.clip) if self.finetune_vision_ln else {}
        return {
            **{f"bank.{name}": p for name, p in self.bank.named_parameters()},
            **{f"router.{name}": p for name, p in self.router.named_parameters()},
            **{f"clip.{name}.{part}": p for name, norm in norms.items() for part, p in norm.named_parameters()},
        }

    @classmethod
    def from_pretrained(cls, folder: str | Path, clip: nn.Module, tokenizer: Any) -> Self:
        """Prompts that :meth:`save_pretrained` wrote, on the CLIP they were learnt with.

        Raises:
            StateError: a file is absent or damaged, or the tensors do not fit this CLIP.
        """
        settings, tensors = _prompt_files.read(folder, (*_OPTIONS, "templates", "classnames", "all_classnames"))
        model = cls(clip, tokenizer, **settings)
        own = model._learnt()
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
        if shapes != wanted:
            wrong = sorted({*shapes.items()} ^ {*wanted.items()})
            raise StateError(f"{folder} holds prompts of another CLIP or tokenizer; these differ: {wrong[:4]}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
        return model
