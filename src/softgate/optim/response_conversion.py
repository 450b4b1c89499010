"""Put best-response layers into a model in the place of its plain ones."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

from softgate._checks import check_sizes
from softgate.errors import ArgumentTypeError, bad_type
from softgate.optim.best_response import BestResponseConv2d, BestResponseEmbedding, BestResponseLinear

__all__ = ["convert_best_response", "materialize_responses"]

_LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d, nn.Embedding)
_RESPONSES = (BestResponseLinear, BestResponseConv2d, BestResponseEmbedding)


@torch.no_grad()
def convert_best_response(model: nn.Module, n_hyper: int, types: tuple[type[nn.Module], ...] = _LAYERS) -> list[str]:
    """Replace plain layers by best-response layers with the same plain part, in place.

    Without a λ (:func:`softgate.optim.hyper`) the model computes what it did. Make the optimizer afterwards. Layers
    that share their weight with another, such as tied decoders, stay as they are, and so do subclasses of the types.

    Args:
        model: any module, itself no layer of these types.
        n_hyper: number of hyper-parameters.
        types: which layers, of ``nn.Linear``, ``nn.Conv2d`` and ``nn.Embedding``.

    Returns:
        Names of the replaced layers.

    Raises:
        ArgumentTypeError: ``model`` is no module, or a type has no best-response layer.
        ArgumentValueError: ``n_hyper`` is not positive.

    Example:
        >>> import torch
        >>> from softgate.optim import hyper
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> x = torch.randn(5, 3)
        >>> before = model(x)
        >>> convert_best_response(model, n_hyper=2), torch.allclose(model(x), before)
        (['0', '2'], True)
        >>> with hyper(torch.ones(5, 2)):
        ...     torch.allclose(model(x), before)
        False

    Paper: Self-Tuning Networks, arXiv 1903.03088.
    """
    if not isinstance(model, nn.Module):
        bad_type("model", model, "an nn.Module")
    check_sizes(n_hyper=n_hyper)
    for kind in types:
        if kind not in _LAYERS:
            raise ArgumentTypeError(f"types must be of {', '.join(k.__name__ for k in _LAYERS)}, got {kind!r}")
    if type(model) in types:
        raise ArgumentTypeError(f"model must hold layers, got a single {type(model).__name__}")
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found = [
        name for name, m in model.named_modules() if type(m) in types and all(uses[id(p)] == 1 for p in m.parameters())
    ]
    for name in found:
        old = model.get_submodule(name)
        new = _response_of(old, n_hyper)
        model.set_submodule(name, new.to(next(old.parameters())).train(old.training))
    return found


def _response_of(old: Any, n_hyper: int) -> nn.Module:
    if isinstance(old, nn.Embedding):
        if old.max_norm is not None or old.sparse:
            raise ArgumentTypeError("embeddings with max_norm or sparse gradients have no best response here")
        table = BestResponseEmbedding(old.num_embeddings, old.embedding_dim, n_hyper, old.padding_idx)
        table.elem_weight.copy_(old.weight)
        return table
    new: BestResponseLinear | BestResponseConv2d
    bias = old.bias is not None
    if isinstance(old, nn.Linear):
        new = BestResponseLinear(old.in_features, old.out_features, n_hyper, bias)
    else:
        if old.padding_mode != "zeros":
            raise ArgumentTypeError(f"convolutions must pad with zeros, got padding_mode={old.padding_mode!r}")
        kernel: Any = old.kernel_size
        new = BestResponseConv2d(
            old.in_channels, old.out_channels, kernel, n_hyper, old.stride, old.padding, old.dilation, old.groups, bias
        )  # type: ignore[arg-type]
    new.weights[: len(old.weight)] = old.weight
    if new.biases is not None:
        new.biases[: len(old.weight)] = old.bias
    return new


def materialize_responses(model: nn.Module, lam: torch.Tensor) -> list[str]:
    """Replace best-response layers by the plain layers that they are for one λ, in place: what one deploys.

    Args:
        model: a module with :class:`BestResponseLinear`, :class:`BestResponseConv2d` or :class:`BestResponseEmbedding`
            inside.
        lam: what the layers are given, (H,).

    Returns:
        Names of the replaced layers.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(BestResponseLinear(3, 2, n_hyper=1))
        >>> materialize_responses(model, torch.ones(1)), type(model[0]).__name__
        (['0'], 'Linear')
    """
    found = [name for name, m in model.named_modules() if name and isinstance(m, _RESPONSES)]
    for name in found:
        old = model.get_submodule(name)
        assert isinstance(old, _RESPONSES)
        model.set_submodule(name, old.materialize(lam).train(old.training))
    return found
