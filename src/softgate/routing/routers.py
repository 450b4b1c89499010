"""The routers that ``softgate.swap(model, router=NAME)`` knows."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from softgate.routing.dense_to_sparse import topk_activation, topk_dense_to_sparse
from softgate.routing.top_k import topk_sigmoid, topk_softmax

__all__ = ["TOP_K_ROUTERS"]

#: name -> f(router_logits (N, E), top_k, **options) -> (scores (N, top_k), indices (N, top_k)).
TOP_K_ROUTERS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "activation": topk_activation,
    "dense_to_sparse": topk_dense_to_sparse,
    "sigmoid": topk_sigmoid,
    "softmax": topk_softmax,
}
