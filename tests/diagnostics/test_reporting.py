"""report: figures against brute force, findings at planted faults, what is left behind and what is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import softgate
from softgate.diagnostics import attention_sink, report, softmax_collapse
from softgate.diagnostics._observe.attention import AttentionSums, score_rows
from softgate.diagnostics._observe.heads import lipschitz_product
from softgate.diagnostics._rules import COLLAPSE, findings
from softgate.diagnostics.figures import Report, RouterFigures
from softgate.errors import SoftgateError
from softgate.models import GPT, GPTConfig
from softgate.routing import MoE

TOKENS = torch.arange(24).view(2, 12) % 16


class Attends(nn.Module):
    """Self-attention over given queries and keys, through torch's function or a softmax of its own."""

    def __init__(self, factor: float = 1.0, *, fused: bool = True, causal: bool = True) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.factor, self.fused, self.causal = factor, fused, causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        q = q * self.factor
        if self.fused:
            out = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            scores = q @ k.mT / 2.0
            if self.causal:
                scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), float("-inf"))
            out = scores.softmax(-1) @ v
        return out.transpose(1, 2).flatten(2)


def found(given: Report, topic: str) -> list[Any]:
    return [finding for finding in given.findings if finding.topic == topic]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_attention_figures_are_those_of_the_whole_matrix(fused: bool, causal: bool) -> None:
    model, x = Attends(4.0, fused=fused, causal=causal), torch.randn(2, 9, 8)
    (layer,) = report(model, [x]).attention
    q, k, _ = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in model.qkv(x).chunk(3, -1))
    scores = 4.0 * q @ k.mT / 2.0
    allowed = torch.ones(9, 9, dtype=torch.bool)
    allowed = allowed.tril() if causal else allowed
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)[:, :, 1:]
    visible = allowed.sum(-1)[1:].double()
    assert layer.sink_share == pytest.approx(weights[..., 0].mean((0, 2)).tolist(), rel=1e-5)
    assert layer.uniform_share == pytest.approx(float((1 / visible).mean()))
    entropy = -(torch.special.xlogy(weights, weights)).sum(-1).double() / visible.log()
    assert layer.entropy == pytest.approx(entropy.mean((0, 2)).tolist(), rel=1e-4)
    assert layer.top_share == pytest.approx(weights.mean(2).amax(-1).mean(0).tolist(), rel=1e-4)
    largest = scores[:, :, 1:].masked_fill(~allowed[1:], 0.0).abs().amax((0, 2, 3))
    assert layer.max_logit == pytest.approx(largest.tolist(), rel=1e-5)
    rows = scores.masked_fill(~allowed, float("-inf"))[:, :, 1:]
    assert layer.collapse["bfloat16"] == pytest.approx(float(softmax_collapse(rows, torch.bfloat16)), abs=1e-6)


def test_sampled_rows_stand_for_all_and_stay_small() -> None:
    q, k = torch.randn(1, 2, 400, 8), torch.randn(1, 1, 400, 8)
    rows = [1, 200, 399]
    scores, allowed = score_rows(q, k, 0, rows, is_causal=True)
    assert scores.shape == (2, 3, 400) and allowed.sum(-1).tolist() == [[2, 201, 400]] * 2
    torch.testing.assert_close(scores, (q[0][:, rows] @ k[0].mT) / math.sqrt(8))
    model = Attends()
    few, many = (report(model, [torch.randn(1, 400, 8)], rows=n).attention[0] for n in (40, 1000))
    assert few.rows == 40 and many.rows == 399
    assert few.uniform_share == pytest.approx(many.uniform_share, rel=0.5)


def test_memory_stays_far_below_the_whole_matrix() -> None:
    largest = 0

    class Sizes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    length = 2048
    with Sizes():
        report(Attends(), [torch.randn(1, length, 8)], rows=8)
    assert 0 < largest <= 64 * length < length**2


def test_suggested_swaps_run_on_torch_attention() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, batch_first=True), 2)
    model.enable_nested_tensor = False
    given = report(model, [torch.randn(2, 7, 16)])
    assert [layer.name for layer in given.attention] == ["layers.0.self_attn", "layers.1.self_attn"]
    for line in {topic.line for topic in given.topics.values() if topic.swap}:
        exec(line, {"softgate": softgate, "model": model})
        assert model(torch.randn(2, 7, 16)).isfinite().all()
        softgate.unswap(model)
    assert '"max_seq_len": 7' in given.topics["saturation"].line


@pytest.mark.parametrize("separate", [False, True])
def test_torch_attention_under_both_masks(separate: bool) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True, kdim=6 if separate else None, vdim=6 if separate else None)
    x, y = torch.randn(2, 5, 8), torch.randn(2, 5, 6 if separate else 8)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    inputs = {"query": x, "key": y, "value": y, "key_padding_mask": padding, "attn_mask": causal}
    (seen,) = report(layer, [{**inputs, "need_weights": True}], rows=10).attention
    _, weights = layer(**inputs, average_attn_weights=False)
    shares = torch.cat([weights[0, :, 1:3, 0], weights[1, :, 1:, 0]], 1).mean(1)  # queries 3, 4 of row 0 are padding
    assert seen.sink_share == pytest.approx(shares.tolist(), rel=1e-5)


@pytest.mark.parametrize("attention", ["gated", "sigmoid"])
def test_attention_of_this_library_says_its_weights(attention: str) -> None:
    model = GPT(GPTConfig(16, num_layers=2, num_heads=2, embed_dim=16, attention=attention,
                          attention_options={"seq_len": 12} if attention == "sigmoid" else {}))  # fmt: skip
    given = report(model, [TOKENS])
    expected = attention_sink(model, TOKENS)["per_layer"]
    assert [sum(a.sink_share) / 2 for a in given.attention] == pytest.approx(expected, rel=1e-5)
    assert given.attention[0].max_logit is None and given.attention[0].collapse == {}
    assert given.topics["sink"].line.startswith("softgate.attention.GatedAttention") and not given.topics["sink"].swap


def test_nothing_is_left_behind_and_the_output_is_untouched() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, batch_first=True, dropout=0.5), 2)
    model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    report(model, [torch.randn(2, 5, 16)])
    assert [module.training for module in model.modules()] == modes
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.overrides._len_torch_function_stack() == 0  # type: ignore[attr-defined]


def test_hooks_and_mode_go_away_after_an_error() -> None:
    model = GPT(GPTConfig(16, num_layers=1, num_heads=2, embed_dim=8))
    with pytest.raises(IndexError):
        report(model, [torch.full((1, 4), 99)])
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert torch.overrides._len_torch_function_stack() == 0  # type: ignore[attr-defined]


def test_the_report_is_json_and_comes_back() -> None:
    given = report(Attends(), [torch.randn(2, 6, 8)])
    value = given.to_json()
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["attention"][0]["name"] == "" and set(value["topics"]) >= {"sink", "collapse"}
    for topic in given.topics.values():
        assert topic.meaning and topic.normal and topic.source and topic.remedy and topic.line


def test_a_planted_sink_is_found_with_its_remedy() -> None:
    model = nn.Sequential(Attends(), Attends())
    for layer in model:
        nn.init.zeros_(layer.qkv.weight)
        layer.qkv.weight.data[8:12, 0] = layer.qkv.weight.data[12:16, 0] = 20.0  # keys of tokens whose feature 0 is set
        layer.qkv.bias.data[:8] = 1.0
    x = torch.zeros(2, 40, 8)
    x[:, 0, 0] = 1.0
    (finding, *_) = found(report(model[0], [x]), "sink")
    assert finding.severity == "high" and "first token" in finding.measured
    x = torch.zeros(2, 40, 8)
    x[:, 3, 0] = 1.0
    (finding, *_) = found(report(Attended(model[0]), [x]), "sink")
    assert "token 3" in finding.measured and finding.where == ["inner"]


class Attended(nn.Module):
    """Another module around a bidirectional attention."""

    def __init__(self, inner: Attends) -> None:
        super().__init__()
        self.inner = inner
        inner.causal = False

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_uniform_attention_is_no_sink_but_diffuse() -> None:
    model = Attends()
    nn.init.zeros_(model.qkv.weight)
    given = report(model, [torch.randn(2, 5, 8)])  # five tokens: every one gets much
    assert not found(given, "sink") and given.attention[0].sink_share[0] > 0.3
    assert found(given, "diffuse")[0].severity == "info"


def test_massive_activations_and_outliers_are_found() -> None:
    class Shifts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()
            self.shift = nn.Parameter(torch.zeros(64))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + self.shift

    model = nn.Sequential(Shifts(), Shifts())
    assert not report(model, [torch.randn(2, 9, 64)]).findings
    model[1].shift.data[5] = 2000.0
    given = report(model, [torch.randn(2, 9, 64)])
    assert [entry.name for entry in given.activations] == ["0", "1"]
    assert found(given, "massive")[0].where == ["1"] and found(given, "outliers")[0].where == ["1"]
    assert given.activations[1].max_abs == pytest.approx(2000.0, rel=0.01)


def test_saturated_attention_is_found() -> None:
    (finding,) = found(report(Attends(1000.0), [torch.randn(2, 9, 8)]), "saturation")
    assert finding.severity == "warning"


@pytest.mark.parametrize(("scale", "severity"), [(100.0, "high"), (8.0, "info"), (0.1, None)])
def test_collapse_is_judged_in_the_dtype_of_the_loss(scale: float, severity: str | None) -> None:
    model = nn.Sequential(nn.Identity())
    x = torch.zeros(50, 10)
    x[:, 0] = scale
    given = report(model, [x])
    assert [f.severity for f in found(given, "collapse")] == ([] if severity is None else [severity])
    assert given.logits is not None and given.logits.loss_dtype == "float32"
    assert given.logits.median_margin == pytest.approx(scale)
    if severity == "info":
        assert found(report(model, [x], loss_dtype=torch.bfloat16), "collapse")[0].severity == "high"
        assert given.logits.collapse["float32"] <= COLLAPSE < given.logits.collapse["bfloat16"]


def test_routers_of_this_library_and_dead_experts() -> None:
    layer = MoE(8, 16, 4, top_k=2)
    x = torch.randn(200, 8)
    (router,) = report(layer, [x]).routers
    assert router.load == layer.stats["load"].tolist() and router.tokens == 200
    assert router.max_violation == pytest.approx(float(layer.stats["max_violation"]))
    assert router.load_entropy == pytest.approx(float(layer.stats["load_entropy"]) / math.log(4), rel=1e-5)
    assert router.router_entropy == pytest.approx(float(layer.stats["router_entropy"]) / math.log(4), rel=1e-5)
    layer.gate.weight.data.zero_()
    layer.gate.weight.data[:2, 0] = 50.0
    (finding,) = found(report(layer, [x.abs()]), "routing")
    assert finding.severity == "high" and "2 of 4 experts" in finding.measured


@pytest.mark.parametrize(("load", "severity"), [([100, 100], None), ([400, 100], "warning"), ([3, 0], None)])
def test_few_tokens_say_nothing_about_balance(load: list[int], severity: str | None) -> None:
    largest = max(load) / (sum(load) / 2) - 1
    router = RouterFigures("r", sum(load), load, largest, 1.0, 1.0, [i for i, n in enumerate(load) if not n])
    assert [f.severity for f in findings([], [], [router], None)] == ([] if severity is None else [severity])


def test_heads_have_their_lipschitz_constant() -> None:
    head = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))
    given = report(head, [torch.randn(20, 6)])
    (entry,) = given.heads
    assert not entry.exact and entry.radius is not None and entry.radius > 0
    norms = [float(torch.linalg.matrix_norm(head[i].weight.detach().double(), 2)) for i in (0, 2)]
    assert entry.lipschitz == pytest.approx(norms[0] * norms[1] * 1.12891, rel=1e-6)
    x, y = torch.randn(2, 500, 6)
    stretch = (head(x) - head(y)).detach().norm(dim=-1) / (x - y).norm(dim=-1)
    assert float(stretch.max()) <= entry.lipschitz
    single = nn.Linear(5, 2)
    assert lipschitz_product(single, [single.weight]) == pytest.approx(
        float(torch.linalg.matrix_norm(single.weight.detach(), 2)), rel=1e-5
    )


@pytest.mark.parametrize("cls", [nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ReLU])
def test_slopes_of_activations_are_their_largest(cls: type[nn.Module]) -> None:
    from softgate.diagnostics._observe.heads import _SLOPES

    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(cls()(x).sum(), x)
    assert _SLOPES[cls] == pytest.approx(float(slope.abs().max()), rel=1e-4)


def test_rows_without_two_keys_do_not_count() -> None:
    sums = AttentionSums("a")
    scores = torch.zeros(1, 3, 3)
    allowed = torch.tensor([[[True, False, False], [False, False, False], [True, True, True]]])
    sums.add_scores(scores, allowed, [0, 1, 2], square=True)
    assert sums.rows == 1 and sums.uniform == pytest.approx(1 / 3)


def test_compiled_models_are_looked_at_in_their_original_form() -> None:
    model = Attends()
    compiled: Any = torch.compile(model, backend="eager")
    x = torch.randn(2, 6, 8)
    assert report(compiled, [x]).to_json() == report(model, [x]).to_json()


def test_what_cannot_be_seen_is_said() -> None:
    class BlindAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"hidden": (self.q(x) @ x.mT).sigmoid() @ x}

    notes = report(BlindAttention(), [torch.randn(2, 5, 8)]).notes
    assert any("BlindAttention cannot be seen" in note for note in notes)
    assert any("no logits" in note for note in notes)


@pytest.mark.parametrize("shape", [(4, 6, 5), (6, 5), (2, 2, 3, 6, 5)], ids=len)
def test_attention_of_other_than_four_dimensions(shape: tuple[int, ...]) -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(x, x, x)

    x = torch.randn(shape)
    (layer,) = report(Plain(), [x], sequences=10).attention
    weights = (x @ x.mT / math.sqrt(5)).softmax(-1)[..., 1:, 0]
    heads = {2: 1, 3: 4, 5: 3}[len(shape)]
    expected = weights.reshape(-1, heads, 5).mean((0, 2))
    assert layer.sink_share == pytest.approx(expected.tolist(), rel=1e-5)


def test_numbers_that_are_none_are_said_and_left_out() -> None:
    model = nn.Sequential(Attends(), Attends())
    x = torch.randn(2, 9, 8)
    clean = report(model, [x[:1]]).to_json()
    x[1, 8] = float("nan")
    x[1, 7] = float("inf")
    given = report(model, [x[:1], x])
    value = given.to_json()
    assert any("NaN or infinite features in 0" in note for note in given.notes)
    assert any("rows of logits" in note for note in given.notes)
    assert given.attention[0].sink_share[0] == given.attention[0].sink_share[0], "a number"
    assert None not in value["attention"][0]["entropy"] and value["logits"]["std"] is not None
    assert given.attention[0].rows > clean["attention"][0]["rows"]


BAD: list[tuple[Any, Any, dict[str, Any], str]] = [
    (None, [TOKENS], {}, "model"),
    (nn.Linear(2, 2), None, {}, "batches"),
    (nn.Linear(2, 2), torch.ones(2, 2), {}, "batches"),
    (nn.Linear(2, 2), [], {}, "batches"),
    (nn.Linear(2, 2), ["text"], {}, "batch"),
    (nn.Linear(2, 2), [torch.ones(1, 2)], {"rows": 0}, "rows"),
    (nn.Linear(2, 2), [torch.ones(1, 2)], {"sequences": 1.5}, "sequences"),
    (nn.Linear(2, 2), [torch.ones(1, 2)], {"tokens": True}, "tokens"),
    (nn.Linear(2, 2), [torch.ones(1, 2)], {"loss_dtype": "float32"}, "loss_dtype"),
    (nn.Linear(2, 2), [torch.ones(1, 2)], {"loss_dtype": torch.int64}, "loss_dtype"),
]


@pytest.mark.parametrize(("model", "batches", "options", "word"), BAD, ids=range(len(BAD)))
def test_bad_arguments(model: Any, batches: Any, options: dict[str, Any], word: str) -> None:
    with pytest.raises(SoftgateError, match=word):
        report(model, batches, **options)
