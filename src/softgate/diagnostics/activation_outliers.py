"""Activation outliers: how far single features stick out of the hidden states, which decides how well they quantise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor
from softgate.diagnostics._running import checked_batches, eval_mode, first_tensor, run_model
from softgate.errors import ArgumentValueError, StateError, bad_type

__all__ = ["ModuleOutliers", "OutlierReport", "kurtosis", "outliers"]

#: What feed-forward layers are called in the models that are looked at without being told where.
_FEED_FORWARD = ("ffn", "mlp", "feed_forward", "fc2", "linear2")
#: The same as a path within the layer: BERT and ViT as transformers writes them.
_FEED_FORWARD_PATHS = ("output.dense",)
#: Tokens seen, sum of their infinity norms, sum of their kurtoses, largest kurtosis.
_Sums = tuple[int, float, float, float]


class ModuleOutliers(TypedDict):
    """Outliers in the output of one module.

    Attributes:
        inf_norm: largest absolute feature of a token, mean over tokens.
        kurtosis: kurtosis over the features of a token, mean over tokens; about 3 for normal numbers.
        peak_kurtosis: the same of the token that has the largest; a few tokens with outliers show here first.
    """

    inf_norm: float
    kurtosis: float
    peak_kurtosis: float


class OutlierReport(TypedDict):
    """Result of :func:`outliers`.

    Attributes:
        modules: name of each module -> its outliers.
        max_inf_norm: largest ``inf_norm`` of all modules.
        mean_kurtosis: mean ``kurtosis`` over modules.
        max_kurtosis: largest ``kurtosis`` of all modules.
        peak_kurtosis: largest kurtosis of any token in any module.
    """

    modules: dict[str, ModuleOutliers]
    max_inf_norm: float
    mean_kurtosis: float
    max_kurtosis: float
    peak_kurtosis: float


def kurtosis(x: Tensor, dim: int = -1) -> Tensor:
    """Kurtosis along ``dim`` as the paper computes it: ``mean((x - µ)⁴) / (s⁴ + 1e-6)`` with the unbiased ``s``.

    The mean of fourth powers is the biased one. Normal numbers have about 3; a single feature that sticks out of n has
    about n.

    Args:
        x: real floating point, at least two entries along ``dim``; 16-bit types are computed in float32.
        dim: the features.

    Returns:
        Tensor without ``dim``, non-negative; 0 for equal entries.

    Raises:
        ArgumentTypeError: ``x`` is not a dense real floating-point tensor.
        ArgumentValueError: fewer than two entries along ``dim``.

    Example:
        >>> kurtosis(torch.tensor([1.0, -1.0, 1.0, -1.0]))
        tensor(0.5625)

    Paper: Quantizable Transformers, arXiv 2306.12929, section 5 (outlier metrics).
    """
    check_float_tensor("x", x)
    if x.ndim == 0 or x.shape[dim] < 2:
        raise ArgumentValueError(f"x must have at least two entries along dim {dim}, got shape {tuple(x.shape)}")
    wide = x.float() if x.itemsize == 2 else x
    deviation = wide - wide.mean(dim, keepdim=True)
    return deviation.pow(4).mean(dim) / (wide.var(dim).square() + 1e-6)


@torch.no_grad()
def outliers(
    model: nn.Module,
    batches: Iterable[Tensor | Mapping[str, Any]],
    *,
    modules: Sequence[str] | None = None,
) -> OutlierReport:
    """Measure the outliers in the feed-forward outputs and the residual stream of ``model``.

    Per module and token: the largest absolute feature (infinity norm) and the kurtosis over features; each is averaged
    over all tokens of all batches, then the largest over modules is taken. The model runs in eval mode.

    Args:
        model: any module; hidden states have their features in the last dimension.
        batches: token ids or whatever the model takes as its argument; a mapping is passed as keyword arguments, and
            tokens that its ``attention_mask`` (B, T) leaves out are not counted.
        modules: names (as in ``model.named_modules()``) of the modules whose outputs count. None takes the layers of
            the model, that is the entries of its longest outermost ``ModuleList`` (without any: ``nn.Sequential`` of
            equal blocks; their outputs are the residual stream), and in them what is called ``ffn``, ``mlp``,
            ``feed_forward``, ``fc2``, ``linear2`` or, for BERT and ViT of transformers, ``output.dense``.

    Raises:
        ArgumentTypeError: ``model`` or a batch of a wrong type.
        ArgumentValueError: a name that the model does not have, or no batches.
        StateError: no layers are found, or a module gave no hidden states.

    Example:
        >>> from softgate.models import GPT, GPTConfig
        >>> model = GPT(GPTConfig(vocab_size=8, num_layers=2, num_heads=2, embed_dim=16))
        >>> report = outliers(model, [torch.zeros(1, 5, dtype=torch.long)])
        >>> list(report["modules"])
        ['blocks.0', 'blocks.0.ffn', 'blocks.1', 'blocks.1.ffn']

    Paper: Quantizable Transformers, arXiv 2306.12929, section 5: "max inf. norm" and "avg. kurtosis".
    """
    if not isinstance(model, nn.Module):
        bad_type("model", model, "a torch.nn.Module")
    names = layer_names(model) if modules is None else _named(model, modules)
    sums: dict[str, _Sums] = {}
    keep: list[Tensor | None] = [None]

    def look(name: str, output: Any) -> None:
        hidden = first_tensor(output)
        if hidden is None or hidden.ndim < 2:
            raise StateError(f"module {name!r} gave no hidden states with features in the last dimension")
        tokens = hidden.flatten(0, -2)
        mask = keep[0]
        if mask is not None and mask.shape == hidden.shape[:-1]:
            tokens = tokens[mask.to(tokens.device).flatten()]
        if not len(tokens):
            return
        count, inf_norms, kurtoses, peak = sums.get(name, (0, 0.0, 0.0, 0.0))
        found = kurtosis(tokens)
        inf_norms += float(tokens.abs().amax(-1).double().sum())
        kurtoses += float(found.double().sum())
        sums[name] = (count + len(tokens), inf_norms, kurtoses, max(peak, float(found.max())))

    with ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        for name in names:
            hook = model.get_submodule(name).register_forward_hook(lambda _m, _a, output, name=name: look(name, output))
            stack.callback(hook.remove)
        empty = True
        for batch in checked_batches("batches", batches):
            empty, keep[0] = False, _kept(batch)
            run_model(model, batch)
        if empty:
            raise ArgumentValueError("batches must hold at least one batch, got none")
    return _report(names, sums)


def _report(names: Sequence[str], sums: Mapping[str, _Sums]) -> OutlierReport:
    missing = [name for name in names if name not in sums]
    if missing:
        raise StateError(f"no tokens went through {', '.join(missing)}")
    found = {
        name: ModuleOutliers(inf_norm=top / n, kurtosis=k / n, peak_kurtosis=peak)
        for name, (n, top, k, peak) in sums.items()
    }
    curves = [entry["kurtosis"] for entry in found.values()]
    return OutlierReport(
        modules={name: found[name] for name in names},
        max_inf_norm=max(entry["inf_norm"] for entry in found.values()),
        mean_kurtosis=sum(curves) / len(curves),
        max_kurtosis=max(curves),
        peak_kurtosis=max(entry["peak_kurtosis"] for entry in found.values()),
    )


def _kept(batch: Tensor | Mapping[str, Any]) -> Tensor | None:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def layer_names(model: nn.Module) -> list[str]:
    """The layers of ``model`` and their feed-forward parts, in order: the longest outermost list of layers."""
    lists: list[tuple[str, Any]] = [
        (name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)
    ]
    if not lists:  # timm keeps its blocks in an nn.Sequential
        lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Sequential) and _repeats(m)]
    if not lists:
        raise StateError(
            f"{type(model).__name__} has no ModuleList of layers (or nn.Sequential of equal blocks); name the modules "
            "to look at"
        )
    outer = [(name, m) for name, m in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    stem, layers = max(outer, key=lambda entry: len(entry[1]))
    names = []
    for index, layer in enumerate(layers):
        prefix = f"{stem}.{index}" if stem else str(index)
        names.append(prefix)
        inside = [name for name, _ in layer.named_modules()]
        names += [f"{prefix}.{name}" for name in inside if _is_feed_forward(name)]
    return names


def _repeats(layers: nn.Sequential) -> bool:
    """Whether an nn.Sequential holds several blocks of one class, each with parts of its own."""
    return len(layers) > 1 and len({type(m) for m in layers}) == 1 and next(layers[0].children(), None) is not None


def _is_feed_forward(name: str) -> bool:
    return name.rpartition(".")[2] in _FEED_FORWARD or name in _FEED_FORWARD_PATHS


def _named(model: nn.Module, modules: Sequence[str]) -> list[str]:
    if isinstance(modules, str) or not isinstance(modules, Sequence):
        bad_type("modules", modules, "a sequence of module names or None")
    known = dict(model.named_modules())
    unknown = [name for name in modules if name not in known]
    if unknown or not modules:
        raise ArgumentValueError(f"modules must be names of modules of {type(model).__name__}, got {unknown or '[]'}")
    return list(modules)
