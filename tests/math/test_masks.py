"""Masks of attention: alignment, combination, fully masked rows, and every kind of bad argument."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softgate._math import masks
from softgate.errors import ArgumentTypeError, ArgumentValueError, SoftgateError

# torch's own forward-mode decompositions are loaded through torch.jit.script, which it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.:DeprecationWarning")

INF = float("inf")


def visible(queries: int, keys: int, causal: bool, window: int | None) -> list[list[bool]]:
    """The definition, pair by pair."""

    def sees(i: int, j: int) -> bool:
        p = i + keys - queries
        return (not causal or j <= p) and (window is None or abs(p - j) < window)

    return [[sees(i, j) for j in range(keys)] for i in range(queries)]


@given(st.integers(0, 6), st.integers(0, 6), st.booleans(), st.none() | st.integers(1, 7))
@settings(max_examples=200, deadline=None)
def test_structural_mask_is_the_definition(queries: int, keys: int, causal: bool, window: int | None) -> None:
    mask = masks.structural_mask(queries, keys, is_causal=causal, window=window)
    if mask is None:
        mask = torch.ones(queries, keys, dtype=torch.bool)
    assert mask.tolist() == visible(queries, keys, causal, window)


def test_causal_mask_is_aligned_at_the_bottom_right() -> None:
    assert masks.causal_mask(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]
    assert masks.causal_mask(3, 1).tolist() == [[False], [False], [True]]


def test_one_causal_query_needs_no_mask() -> None:
    assert masks.structural_mask(1, 100, is_causal=True, window=None) is None
    assert masks.structural_mask(1, 100, is_causal=True, window=99) is not None


def test_bool_and_causal_masks_intersect() -> None:
    query, key = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2)
    keep = torch.tensor([[True, False, True]] * 3)
    allowed, bias = masks.resolve_mask(keep, query, key, is_causal=True)
    assert bias is None and allowed is not None
    assert allowed.tolist() == [[True, False, False], [True, False, False], [True, False, True]]


def test_minus_infinity_in_a_float_mask_means_not_allowed() -> None:
    query, key = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    allowed, bias = masks.resolve_mask(torch.tensor([[0.5, -INF], [-INF, -INF]]), query, key)
    assert allowed is not None and bias is not None
    assert allowed.tolist() == [[True, False], [False, False]]
    assert bias.tolist() == [[0.5, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_additive_mask_merges_both(dtype: torch.dtype) -> None:
    allowed, bias = torch.tensor([[True, False]]), torch.tensor([[1.5, 2.5]])
    assert masks.additive_mask(masks.Mask(None, None), dtype) is None
    only_allowed = masks.additive_mask(masks.Mask(allowed, None), dtype)
    merged = masks.additive_mask(masks.Mask(allowed, bias), dtype)
    only_bias = masks.additive_mask(masks.Mask(None, bias), dtype)
    assert only_allowed is not None and merged is not None and only_bias is not None
    assert only_allowed.tolist() == [[0.0, -INF]] and only_allowed.dtype == dtype
    assert merged.tolist() == [[1.5, -INF]] and only_bias.tolist() == [[1.5, 2.5]]


def test_masked_softmax_rows() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    allowed = torch.tensor([[True, False, True], [False, False, False]])
    weights = masks.masked_softmax(scores, allowed)
    expected = torch.tensor([1.0, 3.0], dtype=torch.float64).softmax(0)
    assert weights[0].tolist() == pytest.approx([expected[0].item(), 0.0, expected[1].item()])
    assert weights[1].tolist() == [0.0, 0.0, 0.0]
    (weights * torch.arange(6.0).view(2, 3)).sum().backward()
    assert scores.grad is not None
    assert scores.grad[1].tolist() == [0.0, 0.0, 0.0] and scores.grad[0, 1] == 0.0 and scores.grad[0, 0] != 0.0


def test_masked_entries_may_hold_anything() -> None:
    scores = torch.tensor([[1.0, float("nan"), INF, 2.0]], requires_grad=True)
    allowed = torch.tensor([[True, False, False, True]])
    weights = masks.masked_softmax(scores, allowed)
    torch.testing.assert_close(weights[0, [0, 3]], torch.tensor([1.0, 2.0]).softmax(0))
    weights[0, 0].backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


def test_masked_softmax_gradients() -> None:
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    allowed = torch.tensor([[True, True, False, True], [False] * 4, [True] * 4])
    assert torch.autograd.gradcheck(lambda x: masks.masked_softmax(x, allowed), scores, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: masks.masked_softmax(x, allowed), scores)


def test_masked_weights_are_exactly_zero() -> None:
    weights = torch.full((1, 3), float("nan"), requires_grad=True)
    kept = masks.masked_weights(weights, torch.tensor([[False, False, False]]))
    kept.sum().backward()
    assert kept.tolist() == [[0.0] * 3]
    assert weights.grad is not None and weights.grad.tolist() == [[0.0] * 3]


def test_query_heads_share_key_heads_in_order() -> None:
    key = torch.arange(2.0).view(1, 2, 1, 1)
    assert masks.expand_kv_heads(key, 6).flatten().tolist() == [0, 0, 0, 1, 1, 1]
    assert masks.expand_kv_heads(key, 2) is key


def test_key_padding_mask() -> None:
    keep = torch.tensor([[True, False]])
    assert masks.key_padding_mask(keep).shape == (1, 1, 1, 2)
    with pytest.raises(ArgumentTypeError, match="keep"):
        masks.key_padding_mask(keep.float())
    with pytest.raises(ArgumentValueError, match="keep"):
        masks.key_padding_mask(keep[0])


def test_autocast_helpers() -> None:
    x, y = torch.ones(1), torch.ones(1, dtype=torch.float64)
    assert masks.autocast_dtype(x) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert masks.autocast_dtype(x) is torch.bfloat16
        assert masks.cast_for_autocast(x)[0].dtype is torch.bfloat16
        assert masks.cast_for_autocast(x, y)[0].dtype is torch.float32
        with masks.without_autocast(x):
            assert masks.autocast_dtype(x) is None


def good() -> dict[str, Any]:
    return {"query": torch.ones(2, 4, 3, 8), "key": torch.ones(2, 4, 5, 8), "value": torch.ones(2, 4, 5, 8)}


BAD: list[tuple[dict[str, Any], type[SoftgateError], str]] = [
    ({"query": [1.0]}, ArgumentTypeError, "query"),
    ({"key": None}, ArgumentTypeError, "key"),
    ({"value": torch.ones(2, 4, 5, 8, dtype=torch.long)}, ArgumentTypeError, "value"),
    ({"query": torch.ones(2, 4, 3, 8, dtype=torch.complex64)}, ArgumentTypeError, "query"),
    ({"key": torch.ones(2, 4, 5, 8).to_sparse()}, ArgumentTypeError, "key"),
    ({"query": torch.ones(3, 8)}, ArgumentValueError, "query"),
    ({"query": torch.ones(4, 3, 8)}, ArgumentValueError, "dimensions"),
    ({"query": torch.ones(1, 4, 3, 8)}, ArgumentValueError, "batch"),
    ({"key": torch.ones(2, 4, 6, 8)}, ArgumentValueError, "length"),
    ({"value": torch.ones(2, 2, 5, 8)}, ArgumentValueError, "heads"),
    ({"query": torch.ones(2, 4, 3, 7)}, ArgumentValueError, "features"),
    ({"query": torch.ones(2, 4, 3, 0), "key": torch.ones(2, 4, 5, 0)}, ArgumentValueError, "features"),
    ({"query": torch.ones(2, 8, 3, 8)}, ArgumentValueError, "enable_gqa"),
    ({"query": torch.ones(2, 6, 3, 8), "enable_gqa": True}, ArgumentValueError, "multiple"),
    ({"key": torch.ones(2, 4, 5, 8, dtype=torch.float64)}, ArgumentTypeError, "dtype"),
    ({"query": torch.ones(2, 4, 3, 8, device="meta")}, ArgumentValueError, "device"),
    ({"attn_mask": [[True]]}, ArgumentTypeError, "attn_mask"),
    ({"attn_mask": torch.ones(3, 5, dtype=torch.long)}, ArgumentTypeError, "attn_mask"),
    ({"attn_mask": torch.ones(3, 5).to_sparse()}, ArgumentTypeError, "attn_mask"),
    ({"attn_mask": torch.ones(3, 5, device="meta")}, ArgumentValueError, "attn_mask"),
    ({"attn_mask": torch.ones(5)}, ArgumentValueError, "attn_mask"),
    ({"attn_mask": torch.ones(5, 3)}, ArgumentValueError, "attn_mask"),
    ({"attn_mask": torch.ones(2, 3, 3, 5)}, ArgumentValueError, "attn_mask"),
    ({"attn_mask": torch.ones(1, 2, 4, 3, 5)}, ArgumentValueError, "attn_mask"),
    ({"dropout_p": 1.0}, ArgumentValueError, "dropout_p"),
    ({"dropout_p": -0.1}, ArgumentValueError, "dropout_p"),
    ({"dropout_p": float("nan")}, ArgumentValueError, "dropout_p"),
    ({"dropout_p": "0.1"}, ArgumentTypeError, "dropout_p"),
    ({"is_causal": 1}, ArgumentTypeError, "is_causal"),
    ({"enable_gqa": None}, ArgumentTypeError, "enable_gqa"),
    ({"scale": "1"}, ArgumentTypeError, "scale"),
    ({"scale": INF}, ArgumentValueError, "scale"),
    ({"scale": float("nan")}, ArgumentValueError, "scale"),
    ({"window": 0}, ArgumentValueError, "window"),
    ({"window": 2.0}, ArgumentTypeError, "window"),
    ({"window": True}, ArgumentTypeError, "window"),
]


@pytest.mark.parametrize(("change", "error", "word"), BAD, ids=range(len(BAD)))
def test_bad_arguments(change: dict[str, Any], error: type[SoftgateError], word: str) -> None:
    with pytest.raises(error, match=word):
        masks.check_attention(**{**good(), **change})


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"query": torch.ones(2, 8, 3, 8), "enable_gqa": True},
        {"value": torch.ones(2, 4, 5, 2)},
        {"key": torch.ones(2, 4, 0, 8), "value": torch.ones(2, 4, 0, 8)},
        {name: torch.ones(0, 4, 3, 8) for name in ("query", "key", "value")},
        {name: torch.ones(4, 3, 8) for name in ("query", "key", "value")},
        {name: torch.ones(1, 2, 4, 3, 8) for name in ("query", "key", "value")},
        {"attn_mask": torch.ones(1, 1, 1, 5, dtype=torch.bool), "is_causal": True, "window": 2, "scale": 0},
    ],
)
def test_good_arguments(change: dict[str, Any]) -> None:
    masks.check_attention(**{**good(), **change})


def test_dtypes_may_differ_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        masks.check_attention(**{**good(), "key": torch.ones(2, 4, 5, 8, dtype=torch.bfloat16)})


def visible_in_pair(queries: int, keys: int, causal: bool, left: int, right: int) -> list[list[bool]]:
    """The definition of a (left, right) window, pair by pair; -1 is no bound."""

    def sees(i: int, j: int) -> bool:
        p = i + keys - queries
        ahead = 0 if causal else keys + queries if right < 0 else right
        return (left < 0 or p - left <= j) and j <= p + ahead

    return [[sees(i, j) for j in range(keys)] for i in range(queries)]


@given(st.integers(0, 6), st.integers(0, 6), st.booleans(), st.integers(-1, 7), st.integers(-1, 7))
@settings(max_examples=200, deadline=None)
def test_window_pairs_are_the_definition(queries: int, keys: int, causal: bool, left: int, right: int) -> None:
    right = min(right, 0) if causal else right
    mask = masks.structural_mask(queries, keys, is_causal=causal, window=(left, right))
    if mask is None:
        mask = torch.ones(queries, keys, dtype=torch.bool)
    assert mask.tolist() == visible_in_pair(queries, keys, causal, left, right)


@pytest.mark.parametrize("window", [None, 1, 5, (0, 0), (-1, -1), (3, 2)])
def test_good_windows(window: Any) -> None:
    masks.check_window(window, is_causal=False)


@pytest.mark.parametrize(
    ("window", "causal", "error"),
    [
        (0, False, ArgumentValueError),
        (True, False, ArgumentTypeError),
        (2.0, False, ArgumentTypeError),
        ((1,), False, ArgumentValueError),
        ((1, 2, 3), False, ArgumentValueError),
        ((), False, ArgumentValueError),
        ((-2, 0), False, ArgumentValueError),
        ((1.0, 0), False, ArgumentTypeError),
        ((1, True), False, ArgumentTypeError),
        ([1, 2], False, ArgumentTypeError),
        ("3", False, ArgumentTypeError),
        ((3, 1), True, ArgumentValueError),
    ],
)
def test_bad_windows(window: Any, causal: bool, error: type[SoftgateError]) -> None:
    with pytest.raises(error, match="window"):
        masks.check_window(window, causal)
