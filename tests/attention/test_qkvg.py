"""Fused query-gate projections: layouts, round trips, and Qwen3-Next's own module as the judge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from softgate.attention import (
    GatedAttention,
    RotaryEmbedding,
    export_gated_state_dict,
    fuse_qkvg,
    import_gated_state_dict,
    unfuse_qkvg,
)
from softgate.errors import ArgumentTypeError, ArgumentValueError, SoftgateError


def test_group_layout_by_hand() -> None:
    """4 heads of 1 feature in 2 groups, headwise: [q0 q1 g0 g1 | q2 q3 g2 g3]."""
    fused = torch.tensor([0.0, 1.0, 10.0, 11.0, 2.0, 3.0, 12.0, 13.0])
    query, gate = unfuse_qkvg(fused, 4, 2, head_dim=1)
    assert query.tolist() == [0, 1, 2, 3] and gate.tolist() == [10, 11, 12, 13]


def test_elementwise_layouts_by_hand() -> None:
    """2 heads of 2 features, one group; rows 0-3 are queries, 10-13 gates."""
    query, gate = torch.tensor([0.0, 1, 2, 3]), torch.tensor([10.0, 11, 12, 13])
    assert fuse_qkvg(query, gate, 2, 1, head_dim=2).tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    assert fuse_qkvg(query, gate, 2, 1, head_dim=2, layout="head").tolist() == [0, 1, 10, 11, 2, 3, 12, 13]


@pytest.mark.parametrize("layout", ["group", "head"])
@pytest.mark.parametrize("granularity", ["elementwise", "headwise"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4), (4, None), (8, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_round_trip(layout: Any, granularity: str, heads: int, kv_heads: int | None, bias: bool) -> None:
    trailing = () if bias else (5,)
    query = torch.randn(heads * 3, *trailing)
    gate = torch.randn(heads * (3 if granularity == "elementwise" else 1), *trailing)
    fused = fuse_qkvg(query, gate, heads, kv_heads, head_dim=3, layout=layout)
    back = unfuse_qkvg(fused, heads, kv_heads, head_dim=3, layout=layout)
    assert torch.equal(back[0], query) and torch.equal(back[1], gate)
    assert sorted(fused.flatten().tolist()) == sorted([*query.flatten().tolist(), *gate.flatten().tolist()])


@pytest.mark.parametrize("layout", ["group", "head"])
@pytest.mark.parametrize("granularity", ["elementwise", "headwise"])
def test_state_dict_round_trip(layout: Any, granularity: Any) -> None:
    m = GatedAttention(24, 6, 2, 4, granularity=granularity, qk_norm=True, bias=True, rope=1e4)
    state, sizes = m.state_dict(), (6, 2)
    published = export_gated_state_dict(state, *sizes, head_dim=4, layout=layout, prefix="layers.0.self_attn.")
    assert "layers.0.self_attn.q_proj.weight" in published and not any("gate" in name for name in published)
    published["layers.1.mlp.weight"] = torch.ones(1)
    back = import_gated_state_dict(published, *sizes, head_dim=4, layout=layout, prefix="layers.0.self_attn.")
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=1e-7)
    m.load_state_dict(back)


def test_qwen3_next_module_gives_the_same() -> None:
    """transformers' own layer, partial rotation and zero-centred norms included."""
    qwen = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    from transformers import Qwen3NextConfig

    config = Qwen3NextConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-6,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = qwen.Qwen3NextAttention(config, 0).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    ours = GatedAttention(32, 4, 2, 8, qk_norm=True, rope=RotaryEmbedding(2, 10000.0)).double()
    ours.load_state_dict(import_gated_state_dict(theirs.state_dict(), 4, 2, head_dim=8, layout="head"))
    x = torch.randn(2, 7, 32, dtype=torch.float64)
    rotary = RotaryEmbedding(2, 10000.0)(torch.arange(7).expand(2, 7))
    mask = torch.zeros(7, 7, dtype=torch.float64).masked_fill(~torch.ones(7, 7, dtype=torch.bool).tril(), -1e9)
    with torch.no_grad():
        # Their norm rounds to float32 inside, hence the tolerance.
        torch.testing.assert_close(ours(x), theirs(x, rotary, mask[None, None])[0], rtol=1e-4, atol=1e-5)


def good_state() -> dict[str, Tensor]:
    shapes = {"q_proj": (16, 8), "k_proj": (8, 8), "v_proj": (8, 8), "o_proj": (8, 8)}
    return {f"{name}.weight": torch.ones(shape) for name, shape in shapes.items()}


SIZES: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 2}
Q, G = torch.ones(8, 5), torch.ones(8, 5)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"fused": None}, ArgumentTypeError, "fused"),
        ({"fused": [1.0]}, ArgumentTypeError, "fused"),
        ({"fused": torch.ones(15, 5)}, ArgumentValueError, "fused"),
        ({"fused": torch.ones(8, 5)}, ArgumentValueError, "fused"),
        ({"fused": torch.ones(16, 5, 1)}, ArgumentValueError, "fused"),
        ({"fused": torch.tensor(1.0)}, ArgumentValueError, "fused"),
        ({"num_heads": 0}, ArgumentValueError, "num_heads"),
        ({"num_heads": 4.0}, ArgumentTypeError, "num_heads"),
        ({"num_heads": True}, ArgumentTypeError, "num_heads"),
        ({"num_kv_heads": 3}, ArgumentValueError, "num_kv_heads"),
        ({"num_kv_heads": -2}, ArgumentValueError, "num_kv_heads"),
        ({"num_kv_heads": "2"}, ArgumentTypeError, "num_kv_heads"),
        ({"head_dim": 0}, ArgumentValueError, "head_dim"),
        ({"head_dim": None}, ArgumentTypeError, "head_dim"),
        ({"head_dim": 5}, ArgumentValueError, "fused"),
        ({"layout": "interleaved"}, ArgumentValueError, "layout"),
        ({"layout": None}, ArgumentTypeError, "layout"),
    ],
)
def test_bad_unfuse(change: dict[str, Any], error: type[SoftgateError], word: str) -> None:
    with pytest.raises(error, match=word):
        unfuse_qkvg(**{"fused": torch.ones(16, 5), **SIZES, **change})


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"query": None}, ArgumentTypeError, "query"),
        ({"gate": 3.0}, ArgumentTypeError, "gate"),
        ({"query": torch.ones(7, 5)}, ArgumentValueError, "query"),
        ({"query": torch.ones(8)}, ArgumentValueError, "query"),
        ({"query": torch.ones(8, 4)}, ArgumentValueError, "query"),
        ({"query": torch.ones(1, 8, 5), "gate": torch.ones(1, 8, 5)}, ArgumentValueError, "query"),
        ({"gate": torch.ones(2, 5)}, ArgumentValueError, "gate"),
        ({"gate": torch.ones(16, 5)}, ArgumentValueError, "gate"),
        ({"gate": torch.ones(8)}, ArgumentValueError, "gate"),
        ({"num_heads": -4}, ArgumentValueError, "num_heads"),
        ({"num_kv_heads": 3}, ArgumentValueError, "num_kv_heads"),
        ({"head_dim": 2.0}, ArgumentTypeError, "head_dim"),
        ({"layout": "pair"}, ArgumentValueError, "layout"),
    ],
)
def test_bad_fuse(change: dict[str, Any], error: type[SoftgateError], word: str) -> None:
    with pytest.raises(error, match=word):
        fuse_qkvg(**{"query": Q, "gate": G, **SIZES, **change})


def test_bad_state_dicts() -> None:
    for change in ({"k_proj.weight": None}, {"rotary.inv_freq": torch.ones(1)}, {"q_proj.weight": torch.ones(9, 8)}):
        state = {k: v for k, v in {**good_state(), **change}.items() if v is not None}
        with pytest.raises(ArgumentValueError):
            import_gated_state_dict(state, **SIZES)
    with pytest.raises(ArgumentTypeError, match="state"):
        export_gated_state_dict([], **SIZES)  # type: ignore[arg-type]
    with pytest.raises(ArgumentValueError, match="gate_proj"):
        export_gated_state_dict(good_state(), **SIZES)
    lonely = {**GatedAttention(8, 4, 2).state_dict(), "q_proj.bias": torch.ones(8)}
    with pytest.raises(ArgumentValueError, match=r"gate_proj\.bias"):
        export_gated_state_dict(lonely, **SIZES)
