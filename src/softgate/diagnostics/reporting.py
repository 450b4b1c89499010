"""``report``: run a model on some batches and say what its softmaxes, gates and routers are doing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_sizes
from softgate.diagnostics._observe.attention import DTYPES, dtype_name
from softgate.diagnostics._observe.interface import is_transformers_model
from softgate.diagnostics._observe.observer import Observer, Sampling
from softgate.diagnostics._observe.summing import (
    activation_figures,
    attention_figures,
    head_figures,
    logit_figures,
    router_figures,
)
from softgate.diagnostics._rules import findings
from softgate.diagnostics._running import checked_batches, eval_mode, run_model
from softgate.diagnostics._topics import topics_for
from softgate.diagnostics.figures import Report
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type

__all__ = ["report"]


@torch.no_grad()
def report(
    model: nn.Module,
    batches: Iterable[Tensor | Mapping[str, Any]],
    *,
    rows: int = 32,
    sequences: int = 4,
    tokens: int = 1024,
    loss_dtype: torch.dtype | None = None,
) -> Report:
    """Look into ``model`` while it runs on ``batches``: attention, activations, logits, routers and small heads.

    Attention is seen wherever it goes through torch's ``scaled_dot_product_attention``, ``nn.MultiheadAttention`` or a
    softmax over (…, queries, keys), through a module with ``attention_weights`` (those of this library), or through
    transformers' attention interface. For each module the scores of ``rows`` queries are computed once more; the whole
    T × T matrix is never held. The model runs in eval mode without gradients and is left as it was.

    Args:
        model: any module. A compiled one is looked at in its original form.
        batches: what the model takes: tensors, or mappings that are passed as keyword arguments. Tokens that an
            ``attention_mask`` (B, T) among them leaves out are not counted.
        rows: queries per sequence and attention, evenly spread; the first of a sequence is never among them.
        sequences: sequences per batch whose attention is looked at, evenly spread.
        tokens: tokens per batch of which kurtosis and logits are taken, evenly spread.
        loss_dtype: in which the loss is computed; None: float32 for models of transformers (they upcast), else the
            dtype of the logits. A tensor that the model returns (or its field ``logits``) counts as logits.

    Returns:
        The :class:`~softgate.diagnostics.Report`; ``findings`` names what is outside what is normal, ``topics`` says
        what that means and which line of code helps.

    Raises:
        ArgumentTypeError: ``model``, a batch or a size of a wrong type.
        ArgumentValueError: no batches, or a size below 1.

    Example:
        >>> layer = nn.TransformerEncoderLayer(16, 4, batch_first=True)
        >>> found = report(layer, [torch.randn(2, 10, 16)])
        >>> [(entry.name, len(entry.sink_share)) for entry in found.attention]
        [('self_attn', 4)]
        >>> found.topics["sink"].line
        'softgate.swap(model, attention="gated")'
    """
    if not isinstance(model, nn.Module):
        bad_type("model", model, "a torch.nn.Module")
    check_sizes(rows=rows, sequences=sequences, tokens=tokens)
    check_loss_dtype(loss_dtype)
    model = original(model)
    observer = Observer(model, Sampling(rows, sequences, tokens))
    with eval_mode(model):
        observer.arm()
        try:
            for batch in checked_batches("batches", batches):
                run_model(model, batch)
        finally:
            observer.disarm()
    if not observer.passes:
        raise ArgumentValueError("batches must hold at least one batch, got none")
    return report_of(observer, loss_dtype)


def check_loss_dtype(loss_dtype: Any) -> None:
    """Raise unless ``loss_dtype`` is None or an arithmetic in which collapse is counted."""
    if loss_dtype is not None and loss_dtype not in DTYPES:
        known = ", ".join(dtype_name(dtype) for dtype in DTYPES)
        raise ArgumentTypeError(f"loss_dtype must be one of {known} or None, got {loss_dtype!r}")


def original(model: nn.Module) -> nn.Module:
    """``model`` itself, or what ``torch.compile`` was given."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def report_of(observer: Observer, loss_dtype: torch.dtype | None = None, *, with_heads: bool = True) -> Report:
    """The report on what ``observer`` has seen so far; ``with_heads=False`` leaves the weights of heads alone."""
    model = observer.model
    attention = [attention_figures(sums) for sums in observer.attention.values() if sums.rows]
    activations = [activation_figures(sums) for sums in observer.activations.values() if sums.tokens]
    routers = [router_figures(sums) for sums in observer.routers.values() if sums.tokens]
    if loss_dtype is not None:
        dtype = dtype_name(loss_dtype)
    else:
        given = observer.logits.dtype
        dtype = "float32" if is_transformers_model(model) or given == "float64" else given
    logits = logit_figures(observer.logits, dtype)
    heads = head_figures(observer, logits) if with_heads else []
    seen = {
        **dict.fromkeys(("sink", "saturation", "diffuse"), attention),
        **dict.fromkeys(("massive", "outliers"), activations),
        **{"routing": routers, "collapse": logits, "lipschitz": heads},
    }
    length = max((a.keys for a in attention), default=1)
    return Report(
        model=type(model).__name__,
        passes=observer.passes,
        attention=attention,
        activations=activations,
        routers=routers,
        logits=logits,
        heads=heads,
        topics=topics_for(model, [name for name, figures in seen.items() if figures], length),
        findings=findings(attention, activations, routers, logits),
        notes=_notes(observer, bool(attention), bool(activations)),
    )


def _notes(observer: Observer, attention: bool, activations: bool) -> list[str]:
    """What was not looked at, and why."""
    notes = [f"{name} was not looked at: {reason}" for name, reason in observer.unseen.items()]
    broken = {name: sums.broken for name, sums in observer.activations.items() if sums.broken}
    if broken:
        name = next(iter(broken))
        notes.append(
            f"{broken[name]} tokens have NaN or infinite features in {name}, the first of {len(broken)} modules"
        )
    if observer.logits.broken:
        notes.append(f"{observer.logits.broken} rows of logits hold NaN or infinite numbers and were left out")
    blind = [
        name
        for name, module in observer.model.named_modules()
        if _is_leaf_attention(module) and name not in observer.attention and name not in observer.unseen
    ]
    if blind:
        more = f" and {len(blind) - 1} more" if len(blind) > 1 else ""
        notes.append(f"the weights of {blind[0] or type(observer.model).__name__}{more} cannot be seen from outside")
    elif not attention:
        notes.append("no attention was seen")
    if not activations and not broken:
        notes.append("no list of layers was found: activations were not looked at")
    if not observer.logits.rows + observer.logits.broken:
        notes.append("the model returns no logits: their scale and collapse were not looked at")
    return notes


def _is_leaf_attention(module: nn.Module) -> bool:
    """Whether ``module`` is called attention and holds projections itself, no further attention inside."""
    called = [m for m in module.modules() if any(mark in type(m).__name__ for mark in ("Attention", "Attn"))]
    return called == [module] and any(isinstance(part, nn.Linear) for part in module.children())
