"""gated_attention refuses what does not fit, naming the argument."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from softgate.attention import gated_attention
from softgate.errors import ArgumentTypeError, ArgumentValueError, SoftgateError, StateError


def good() -> dict[str, Any]:
    return {
        "query": torch.ones(2, 4, 3, 8),
        "key": torch.ones(2, 4, 5, 8),
        "value": torch.ones(2, 4, 5, 8),
        "gate": torch.ones(2, 4, 3, 8),
    }


BAD: list[tuple[dict[str, Any], type[SoftgateError], str]] = [
    ({"gate": 1.0}, ArgumentTypeError, "gate"),
    ({"gate": torch.ones(2, 4, 3, 8, dtype=torch.long)}, ArgumentTypeError, "gate"),
    ({"gate": torch.ones(2, 4, 3, 8, dtype=torch.bool)}, ArgumentTypeError, "gate"),
    ({"gate": torch.ones(2, 4, 3, 8, dtype=torch.complex64)}, ArgumentTypeError, "gate"),
    ({"gate": torch.ones(2, 4, 3, 8, dtype=torch.float64)}, ArgumentTypeError, "gate"),
    ({"gate": torch.ones(2, 4, 3, 8, dtype=torch.bfloat16)}, ArgumentTypeError, "gate"),
    ({"gate": torch.ones(2, 4, 3, 8).to_sparse()}, ArgumentTypeError, "gate"),
    ({"gate": torch.ones(2, 4, 3, 8, device="meta")}, ArgumentValueError, "device"),
    ({"gate": torch.ones(2, 3, 3, 8)}, ArgumentValueError, "gate"),
    ({"gate": torch.ones(2, 2, 3, 8)}, ArgumentValueError, "gate"),
    ({"gate": torch.ones(2, 4, 5, 8)}, ArgumentValueError, "gate"),
    ({"gate": torch.ones(2, 4, 1, 8)}, ArgumentValueError, "gate"),
    ({"gate": torch.ones(2, 4, 3, 4)}, ArgumentValueError, "gate"),
    ({"gate": torch.ones(1, 4, 3, 8)}, ArgumentValueError, "gate"),
    ({"gate": torch.ones(4, 3, 8)}, ArgumentValueError, "gate"),
    ({"gate": torch.ones(2, 4, 3)}, ArgumentValueError, "gate"),
    ({"gate": torch.ones(2, 3, 4, 8)}, ArgumentValueError, "gate"),
    ({"value": torch.ones(2, 4, 5, 6)}, ArgumentValueError, "gate"),
    ({"gate_activation": "tanh"}, ArgumentValueError, "gate_activation"),
    ({"gate_activation": None}, ArgumentTypeError, "gate_activation"),
    ({"gate_activation": 3}, ArgumentTypeError, "gate_activation"),
    ({"gate_is_logit": 1}, ArgumentTypeError, "gate_is_logit"),
    ({"backend": "nonsense"}, ArgumentValueError, "backend"),
    ({"backend": None}, ArgumentTypeError, "backend"),
    ({"backend": "flash_cpu", "dropout_p": 0.5}, StateError, "dropout"),
    ({"query": torch.ones(3, 8)}, ArgumentValueError, "query"),
    ({"query": torch.ones(2, 8, 3, 8), "gate": torch.ones(2, 8, 3, 8)}, ArgumentValueError, "enable_gqa"),
    ({"query": torch.ones(2, 6, 3, 8), "gate": None, "enable_gqa": True}, ArgumentValueError, "multiple"),
    ({"key": torch.ones(2, 4, 5, 8).double()}, ArgumentTypeError, "dtype"),
    ({"value": torch.ones(2, 4, 5, 8, device="meta")}, ArgumentValueError, "device"),
    ({"attn_mask": torch.ones(3, 4, dtype=torch.bool), "is_causal": True}, ArgumentValueError, "attn_mask"),
    ({"attn_mask": torch.ones(3, 5, dtype=torch.int)}, ArgumentTypeError, "attn_mask"),
    ({"dropout_p": 1.0}, ArgumentValueError, "dropout_p"),
    ({"dropout_p": -1e-3}, ArgumentValueError, "dropout_p"),
    ({"scale": float("inf")}, ArgumentValueError, "scale"),
    ({"is_causal": torch.tensor(True)}, ArgumentTypeError, "is_causal"),
    ({"window": 0}, ArgumentValueError, "window"),
    ({"window": (1, 1)}, ArgumentTypeError, "window"),
]


@pytest.mark.parametrize(("change", "error", "word"), BAD, ids=range(len(BAD)))
def test_bad_arguments(change: dict[str, Any], error: type[SoftgateError], word: str) -> None:
    with pytest.raises(error, match=word):
        gated_attention(**{**good(), **change})


@pytest.mark.parametrize(
    "gate", [torch.ones(2, 4, 3, 8), torch.ones(2, 4, 3, 1), torch.ones(2, 1, 3, 8), torch.ones(2, 1, 3, 1), None]
)
def test_good_gates(gate: torch.Tensor | None) -> None:
    assert gated_attention(**{**good(), "gate": gate}).shape == (2, 4, 3, 8)


def test_a_failing_callable_speaks_for_itself() -> None:
    def broken(_: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("the user's own error")

    with pytest.raises(ZeroDivisionError, match="own error"):
        gated_attention(**good(), gate_activation=broken)


def test_forced_kernel_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTGATE_KERNELS", "flash_cpu")
    with pytest.raises(StateError, match="dropout"):
        gated_attention(**good(), dropout_p=0.5)
