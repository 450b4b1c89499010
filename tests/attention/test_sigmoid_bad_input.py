"""Every wrong argument of sigmoid attention, packed or not, of its module, of LayerScale and of ALiBi slopes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from softgate.attention import (
    LayerScale,
    SigmoidAttention,
    alibi_slopes,
    sigmoid_attention,
)
from softgate.errors import ArgumentTypeError, ArgumentValueError, SoftgateError, StateError


def good() -> dict[str, Any]:
    q, kv = torch.ones(2, 4, 3, 8), torch.ones(2, 2, 5, 8)
    return {"query": q, "key": kv, "value": kv, "enable_gqa": True, "seq_len": 5}


NAN, INF = float("nan"), float("inf")
BAD: list[tuple[dict[str, Any], type[SoftgateError], str]] = [
    ({"bias": "neg_log"}, ArgumentValueError, "bias"),
    ({"bias": True}, ArgumentTypeError, "bias"),
    ({"bias": [0.0] * 4}, ArgumentTypeError, "bias"),
    ({"bias": NAN}, ArgumentValueError, "bias"),
    ({"bias": torch.zeros(3)}, ArgumentValueError, "bias"),
    ({"bias": torch.zeros(3, 4)}, ArgumentValueError, "bias"),
    ({"bias": torch.zeros(1, 2, 4)}, ArgumentValueError, "bias"),
    ({"bias": torch.zeros(2)}, ArgumentValueError, "bias"),  # key heads
    ({"bias": torch.zeros(4, dtype=torch.long)}, ArgumentTypeError, "bias"),
    ({"bias": torch.zeros(4, device="meta")}, ArgumentValueError, "bias"),
    ({"seq_len": 0}, ArgumentValueError, "seq_len"),
    ({"seq_len": -3}, ArgumentValueError, "seq_len"),
    ({"seq_len": 5.0}, ArgumentTypeError, "seq_len"),
    ({"seq_len": True}, ArgumentTypeError, "seq_len"),
    ({"alibi_slopes": [0.5] * 4}, ArgumentTypeError, "alibi_slopes"),
    ({"alibi_slopes": torch.ones(3)}, ArgumentValueError, "alibi_slopes"),
    ({"alibi_slopes": torch.ones(2)}, ArgumentValueError, "alibi_slopes"),  # key heads
    ({"alibi_slopes": torch.ones(1)}, ArgumentValueError, "alibi_slopes"),
    ({"alibi_slopes": torch.tensor(1.0)}, ArgumentValueError, "alibi_slopes"),
    ({"alibi_slopes": torch.ones(3, 4)}, ArgumentValueError, "alibi_slopes"),
    ({"alibi_slopes": torch.ones(4, dtype=torch.bfloat16)}, ArgumentTypeError, "alibi_slopes"),
    ({"alibi_slopes": torch.ones(4, dtype=torch.float64)}, ArgumentTypeError, "alibi_slopes"),
    ({"alibi_slopes": torch.ones(4, device="meta")}, ArgumentValueError, "alibi_slopes"),
    ({"window": 0}, ArgumentValueError, "window"),
    ({"window": (1, 2, 3)}, ArgumentValueError, "window"),
    ({"window": (2, 1), "is_causal": True}, ArgumentValueError, "window"),
    ({"softcap": 0.0}, ArgumentValueError, "softcap"),
    ({"softcap": -1.0}, ArgumentValueError, "softcap"),
    ({"softcap": INF}, ArgumentValueError, "softcap"),
    ({"softcap": "1"}, ArgumentTypeError, "softcap"),
    ({"backend": "cuda"}, ArgumentValueError, "backend"),
    ({"backend": None}, ArgumentTypeError, "backend"),
    ({"enable_gqa": False}, ArgumentValueError, "enable_gqa"),
    ({"query": torch.ones(2, 3, 3, 8)}, ArgumentValueError, "multiple"),
]


@pytest.mark.parametrize(("change", "error", "word"), BAD, ids=range(len(BAD)))
def test_bad_arguments(change: dict[str, Any], error: type[SoftgateError], word: str) -> None:
    with pytest.raises(error, match=word):
        sigmoid_attention(**{**good(), **change})


def test_a_forced_kernel_says_why_it_cannot() -> None:
    with pytest.raises(StateError, match="empty"):
        sigmoid_attention(**{**good(), "query": torch.ones(2, 4, 0, 8)}, backend="tiled")


BAD_MODULES: list[tuple[dict[str, Any], type[SoftgateError], str]] = [
    ({"seq_len": None}, ArgumentTypeError, "seq_len"),
    ({"seq_len": 0}, ArgumentValueError, "seq_len"),
    ({"bias_init": "zero"}, ArgumentValueError, "bias_init"),
    ({"bias_init": None}, ArgumentTypeError, "bias_init"),
    ({"bias_init": NAN}, ArgumentValueError, "bias_init"),
    ({"bias_init": "neg_log_visible", "learn_bias": True}, ArgumentValueError, "learn_bias"),
    ({"learn_bias": 1}, ArgumentTypeError, "learn_bias"),
    ({"qk_norm": "batch"}, ArgumentValueError, "qk_norm"),
    ({"output_norm": "rms"}, ArgumentTypeError, "output_norm"),
    ({"alibi": None}, ArgumentTypeError, "alibi"),
    ({"temperature": INF}, ArgumentValueError, "temperature"),
    ({"row_scale": "mean"}, ArgumentValueError, "row_scale"),
    ({"num_heads": 5}, ArgumentValueError, "embed_dim"),
    ({"num_kv_heads": 3}, ArgumentValueError, "num_kv_heads"),
    ({"rope": True}, ArgumentTypeError, "rope"),
]


@pytest.mark.parametrize(("change", "error", "word"), BAD_MODULES, ids=range(len(BAD_MODULES)))
def test_bad_module_options(change: dict[str, Any], error: type[SoftgateError], word: str) -> None:
    with pytest.raises(error, match=word):
        SigmoidAttention(**{"embed_dim": 24, "num_heads": 4, "seq_len": 8, **change})


def test_the_module_needs_its_length_of_training() -> None:
    with pytest.raises(TypeError, match="seq_len"):
        SigmoidAttention(24, 4)  # type: ignore[call-arg]


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "4", None])
def test_bad_sizes(value: Any) -> None:
    with pytest.raises(SoftgateError, match="num_heads"):
        alibi_slopes(value)
    with pytest.raises(SoftgateError, match="dim"):
        LayerScale(value)


def test_bad_layer_scale() -> None:
    for init in (NAN, INF, "1", None):
        with pytest.raises(SoftgateError, match="init"):
            LayerScale(4, init)  # type: ignore[arg-type]
    for x in (torch.ones(3), torch.tensor(1.0), torch.ones(2, 4, dtype=torch.long), [1.0] * 4):
        with pytest.raises(SoftgateError, match="x must"):
            LayerScale(4)(x)  # type: ignore[arg-type]
