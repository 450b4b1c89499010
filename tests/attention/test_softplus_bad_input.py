"""softplus_attention, its weights and its module refuse what does not fit, naming the argument."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from softgate.attention import SoftplusAttention, lssa_weights, softplus_attention
from softgate.errors import ArgumentTypeError, ArgumentValueError, SoftgateError, StateError

OPTIONS: list[tuple[dict[str, Any], type[SoftgateError], str]] = [
    ({"reweight_power": 0.99}, ArgumentValueError, "reweight_power"),
    ({"reweight_power": 0}, ArgumentValueError, "reweight_power"),
    ({"reweight_power": -3}, ArgumentValueError, "reweight_power"),
    ({"reweight_power": float("inf")}, ArgumentValueError, "reweight_power"),
    ({"reweight_power": float("nan")}, ArgumentValueError, "reweight_power"),
    ({"reweight_power": "15"}, ArgumentTypeError, "reweight_power"),
    ({"reweight_power": True}, ArgumentTypeError, "reweight_power"),
    ({"offset": -0.1}, ArgumentValueError, "offset"),
    ({"offset": float("inf")}, ArgumentValueError, "offset"),
    ({"offset": None}, ArgumentTypeError, "offset"),
    ({"offset_min_keys": -1}, ArgumentValueError, "offset_min_keys"),
    ({"offset_min_keys": 3.0}, ArgumentTypeError, "offset_min_keys"),
    ({"offset_min_keys": True}, ArgumentTypeError, "offset_min_keys"),
    ({"length_scale": "sqrt"}, ArgumentValueError, "length_scale"),
    ({"length_scale": None}, ArgumentTypeError, "length_scale"),
    ({"phi": "tanh"}, ArgumentValueError, "phi"),
    ({"phi": torch.exp}, ArgumentTypeError, "phi"),
]
CALLS: list[tuple[dict[str, Any], type[SoftgateError], str]] = [
    *OPTIONS,
    ({"normalize_qk": 1}, ArgumentTypeError, "normalize_qk"),
    ({"window": 0}, ArgumentValueError, "window"),
    ({"scale": float("nan")}, ArgumentValueError, "scale"),
    ({"query": torch.ones(2, 4, 3, 1), "key": torch.ones(2, 4, 5, 1)}, ArgumentValueError, "query"),
    ({"key": torch.ones(2, 3, 5, 8)}, ArgumentValueError, "enable_gqa"),
    ({"key": torch.ones(2, 4, 5, 6)}, ArgumentValueError, "features"),
    ({"attn_mask": torch.ones(3, 4, dtype=torch.bool)}, ArgumentValueError, "attn_mask"),
    ({"attn_mask": torch.ones(3, 5, dtype=torch.int)}, ArgumentTypeError, "attn_mask"),
]
ATTENTION_CALLS: list[tuple[dict[str, Any], type[SoftgateError], str]] = [
    ({"value": torch.ones(2, 4, 6, 8)}, ArgumentValueError, "value"),
    ({"dropout_p": 1.0}, ArgumentValueError, "dropout_p"),
    ({"backend": "flash"}, ArgumentValueError, "backend"),
    ({"backend": "tiled", "dropout_p": 0.5}, StateError, "dropout"),
    ({"backend": "tiled", "phi": "exp"}, StateError, "exp"),
]


def good() -> dict[str, Any]:
    return {"query": torch.ones(2, 4, 3, 8), "key": torch.ones(2, 4, 5, 8)}


@pytest.mark.parametrize(("change", "error", "word"), [*CALLS, *ATTENTION_CALLS])
def test_the_function(change: dict[str, Any], error: type[SoftgateError], word: str) -> None:
    arguments = {**good(), **change}
    arguments.setdefault("value", torch.ones(2, arguments["key"].shape[1], 5, 8))
    with pytest.raises(error, match=word):
        softplus_attention(**arguments)


@pytest.mark.parametrize(("change", "error", "word"), CALLS)
def test_the_weights(change: dict[str, Any], error: type[SoftgateError], word: str) -> None:
    with pytest.raises(error, match=word):
        lssa_weights(**{**good(), **change})


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        *OPTIONS,
        ({"embed_dim": 4}, ArgumentValueError, "features per head"),
        ({"embed_dim": 6}, ArgumentValueError, "embed_dim"),
        ({"rope": "1e4"}, ArgumentTypeError, "rope"),
    ],
)
def test_the_module(change: dict[str, Any], error: type[SoftgateError], word: str) -> None:
    with pytest.raises(error, match=word):
        SoftplusAttention(**{"embed_dim": 16, "num_heads": 4, **change})


def test_one_feature_is_enough_where_the_scale_is_given() -> None:
    x = torch.tensor([2.0, -3.0, 1.0, 5.0])[None, None, :, None]
    weights = lssa_weights(x, x, scale=1.0)
    assert torch.equal(weights[0, 0, 1], torch.tensor([0.0, 1.0, 0.0, 0.0]))
