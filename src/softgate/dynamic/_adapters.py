"""Existing classifiers taken apart into stages, for the class methods of EarlyExit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_sizes
from softgate.dynamic._pooling import LazyHead, MeanPool, TokenPool, exit_head
from softgate.dynamic.uncertainty import UncertaintyGate
from softgate.errors import ArgumentValueError, bad_type, bad_value

Parts = dict[str, Any]


class Steps(nn.Module):
    """Modules one after the other, each fed with what the one before returned."""

    def __init__(self, *steps: nn.Module) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, state: Any) -> Any:
        """The last one's output."""
        for step in self.steps:
            state = step(state)
        return state


def _assemble(stages: list[nn.Module], heads: list[nn.Module], final_head: nn.Module, pools: Any) -> Parts:
    gates = [UncertaintyGate() for _ in heads]
    return {"stages": stages, "heads": heads, "gates": gates, "final_head": final_head, "pools": pools}


def _classes(head: nn.Module) -> int:
    """Outputs of the last linear layer in ``head``."""
    found = [module.out_features for module in head.modules() if isinstance(module, nn.Linear)]
    if not found:
        raise ArgumentValueError("the model must have a linear layer at its end, which tells the number of classes")
    return found[-1]


def _grouped(blocks: Sequence[nn.Module], every: int) -> list[list[nn.Module]]:
    """Blocks in groups of ``every``, with an exit between two of them."""
    check_sizes(every=every)
    if every >= len(blocks):
        bad_value("every", every, f"below the number of blocks, {len(blocks)}")
    return [list(blocks[start : start + every]) for start in range(0, len(blocks), every)]


def _has(model: Any, names: Sequence[str]) -> bool:
    """Whether ``model`` is a module with all these parts."""
    return isinstance(model, nn.Module) and all(hasattr(model, name) for name in names)


def _placed(model: nn.Module, *parts: nn.Module) -> None:
    """Bring new ``parts`` to device and dtype of ``model``."""
    weight = next(model.parameters())
    for part in parts:
        part.to(device=weight.device, dtype=weight.dtype)


def sequential_parts(seq: Any, cuts: Any, example: Any) -> Parts:
    """Parts of an ``nn.Sequential`` cut before each of ``cuts``."""
    if not isinstance(seq, nn.Sequential):
        bad_type("seq", seq, "a torch.nn.Sequential")
    places = [0, *cuts, len(seq)]
    if len(places) < 3 or any(not isinstance(p, int) for p in places) or any(a >= b for a, b in pairwise(places)):
        bad_value("cuts", list(cuts), f"increasing places between 1 and {len(seq) - 1}")
    stages: list[nn.Module] = [seq[a:b] for a, b in pairwise(places)]
    classes, pools = _classes(seq), [MeanPool() for _ in stages[:-1]]
    if example is None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Lazy modules", category=UserWarning)
            heads: list[nn.Module] = [LazyHead(classes) for _ in pools]
    else:
        heads = [exit_head(width, classes) for width in _widths(stages, pools, example)]
        _placed(seq, *heads)
    return _assemble(stages, heads, nn.Identity(), pools)


@torch.no_grad()
def _widths(stages: list[nn.Module], pools: list[MeanPool], example: Any) -> list[int]:
    """Features at every exit, found by running ``example`` in eval mode."""
    modes = [(module, module.training) for stage in stages for module in stage.modules()]
    widths, state = [], example
    try:
        for stage, pool in zip(stages, pools, strict=False):
            state = stage.eval()(state)
            widths.append(pool(state).shape[1])
    finally:
        for module, mode in modes:
            module.training = mode
    return widths


class _TimmStem(nn.Module):
    """Image -> tokens with class token and positions, as the model's own ``forward_features`` begins."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.patch_embed, self.patch_drop, self.norm_pre = model.patch_embed, model.patch_drop, model.norm_pre
        self.pos_drop = model.pos_drop
        for name in ("cls_token", "reg_token", "pos_embed"):
            self.register_parameter(name, getattr(model, name, None))
        # the model's method on this module, which has the parts it reads; no second reference to the whole model
        self._embed: Callable[[Any, Tensor], Tensor] = type(model)._pos_embed
        for name in ("dynamic_img_size", "no_embed_class", "num_prefix_tokens", "embed_dim"):
            setattr(self, name, getattr(model, name, None))

    def forward(self, images: Tensor) -> Tensor:
        x = self._embed(self, self.patch_embed(images))
        tokens: Tensor = self.norm_pre(self.patch_drop(x))
        return tokens


def timm_vit_parts(model: Any, every: int) -> Parts:
    """Parts of a ``VisionTransformer`` of timm."""
    needed = ("patch_embed", "_pos_embed", "norm_pre", "blocks", "norm", "fc_norm", "head", "global_pool")
    if not _has(model, needed):
        bad_type("model", model, "a VisionTransformer of timm")
    if model.global_pool not in ("token", "avg"):
        bad_value("model.global_pool", model.global_pool, "'token' or 'avg'")
    groups = _grouped(list(model.blocks), every)
    stages: list[nn.Module] = [Steps(*group) for group in groups]
    stages[0] = Steps(_TimmStem(model), *groups[0])
    average = model.global_pool == "avg"
    prefix = model.num_prefix_tokens if not getattr(model, "pool_include_prefix", False) else 0
    pool = TokenPool(model.norm, prefix=prefix, average=average, after=model.fc_norm)
    heads = [exit_head(model.embed_dim, _classes(model.head)) for _ in stages[:-1]]
    parts = _assemble(stages, list(heads), nn.Sequential(model.head_drop, model.head), pool)
    _placed(model, *heads)
    return parts


def torchvision_resnet_parts(model: Any, every: int | None) -> Parts:
    """Parts of a ``ResNet`` of torchvision."""
    needed = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc")
    if not _has(model, needed):
        bad_type("model", model, "a ResNet of torchvision")
    layers = [list(getattr(model, f"layer{place}")) for place in range(1, 5)]
    groups = layers if every is None else _grouped([block for layer in layers for block in layer], every)
    stages: list[nn.Module] = [Steps(*group) for group in groups]
    stages[0] = Steps(model.conv1, model.bn1, model.relu, model.maxpool, *groups[0])
    heads = [exit_head(_channels(group[-1]), _classes(model.fc)) for group in groups[:-1]]
    _placed(model, *heads)
    final = nn.Sequential(model.avgpool, nn.Flatten(1), model.fc)
    return _assemble(stages, list(heads), final, None)


def _channels(block: nn.Module) -> int:
    """Channels that a residual block returns: those of its last normalisation on the main path."""
    norms = [m for name, m in block.named_modules() if name.startswith("bn") and hasattr(m, "num_features")]
    return int(norms[-1].num_features)


class _TransformersStem(nn.Module):
    """Ids or pixels -> state of a transformers encoder: hidden vectors, and the mask as its layers want it."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.embeddings, self.config = base.embeddings, base.config
        # ELECTRA's, where the width of the embeddings is not that of the layers
        self.project = getattr(base, "embeddings_project", None) or nn.Identity()

    def forward(self, x: Any) -> dict[str, Tensor | None]:
        from transformers.masking_utils import create_bidirectional_mask

        given = dict(x) if isinstance(x, Mapping) else {}
        mask = given.pop("attention_mask", None)
        embedded = self.embeddings(**given) if given else self.embeddings(x)
        hidden = self.project(embedded)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=mask)
        return {"hidden": hidden, "mask": mask}


class _TransformersLayer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, state: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
        found = self.layer(state["hidden"], state["mask"])
        return {**state, "hidden": found[0] if isinstance(found, tuple) else found}


class _SequenceHead(nn.Module):
    """The model's own final norm, pooler and classifier, on the state of its last layer.

    A linear classifier reads one vector, the class token's or what the pooler makes of it; that of RoBERTa and ELECTRA
    reads the whole ``sequence``.
    """

    def __init__(self, norm: nn.Module, pooler: nn.Module | None, classifier: nn.Sequential, *, sequence: bool) -> None:
        super().__init__()
        self.norm, self.pooler, self.classifier, self.sequence = norm, pooler, classifier, sequence

    def forward(self, state: dict[str, Tensor]) -> Tensor:
        hidden = self.norm(state["hidden"])
        if self.pooler is not None:
            hidden = self.pooler(hidden)
        elif not self.sequence:
            hidden = hidden[:, 0]
        logits: Tensor = self.classifier(hidden)
        return logits


#: Families (by the name of their base model) whose classifiers are put together as below, and where their layers are.
_FAMILIES = {
    "bert": "encoder.layer",
    "roberta": "encoder.layer",
    "electra": "encoder.layer",
    "distilbert": "transformer.layer",
    "vit": "layers",
}


def transformers_parts(model: Any, every: int) -> Parts:
    """Parts of a sequence or image classifier of transformers."""
    family = getattr(model, "base_model_prefix", None)
    classifier = getattr(model, "classifier", None)
    if not _has(model, ("config",)) or family not in _FAMILIES or not isinstance(classifier, nn.Module):
        bad_type("model", model, f"a classifier of transformers of the family {', '.join(_FAMILIES)}")
    base = getattr(model, str(family))
    layers: Any = base
    for name in _FAMILIES[str(family)].split("."):
        layers = getattr(layers, name)
    groups = _grouped([_TransformersLayer(layer) for layer in layers], every)
    stages: list[nn.Module] = [Steps(*group) for group in groups]
    stages[0] = Steps(_TransformersStem(base), *groups[0])
    norm = getattr(base, "layernorm", None) or nn.Identity()
    pre = getattr(model, "pre_classifier", None)
    parts = [*((pre, nn.ReLU()) if pre is not None else ()), getattr(model, "dropout", None), classifier]
    final = _SequenceHead(
        norm,
        getattr(base, "pooler", None),
        nn.Sequential(*(part for part in parts if part is not None)),
        sequence=not isinstance(classifier, nn.Linear),
    )
    heads = [exit_head(base.config.hidden_size, _classes(classifier)) for _ in stages[:-1]]
    _placed(model, *heads)
    return _assemble(stages, list(heads), final, [TokenPool(norm) for _ in heads])
