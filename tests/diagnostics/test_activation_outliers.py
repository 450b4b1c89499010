"""Kurtosis and infinity norms: by hand, on planted outliers, module selection, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from softgate.attention import HeadGatedAttention
from softgate.diagnostics import kurtosis, outliers, ptq_evaluate
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.models import GPT, GPTConfig


def test_kurtosis_by_hand() -> None:
    x = torch.randn(3, 4, 20, dtype=torch.float64)
    mean = x.mean(-1, keepdim=True)
    unbiased = ((x - mean) ** 2).sum(-1) / 19
    torch.testing.assert_close(kurtosis(x), ((x - mean) ** 4).mean(-1) / (unbiased**2 + 1e-6))
    torch.testing.assert_close(kurtosis(x.movedim(-1, 0), 0), kurtosis(x))
    assert (kurtosis(torch.ones(2, 5)) == 0).all()
    assert kurtosis(torch.randn(200_000)) == pytest.approx(3.0, abs=0.1)
    spike = torch.zeros(1000)
    spike[3] = 50.0
    assert kurtosis(spike) == pytest.approx(1000, rel=0.01)  # as large as it can be
    assert kurtosis(spike.bfloat16()).dtype is torch.float32


class Layer(nn.Module):
    """Writes a multiple of its input to one feature of the feed-forward output."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.ffn = nn.Linear(8, 8, bias=False)
        nn.init.zeros_(self.ffn.weight)
        with torch.no_grad():
            self.ffn.weight[2, 2] = factor
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x + self.dropout(self.ffn(x)), None


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(2.0), Layer(10.0)])

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x, _ = layer(x)
        return x


def test_figures_by_hand() -> None:
    model = Tower().train()
    batches = [torch.randn(2, 3, 8), torch.randn(4, 3, 8)]
    report = outliers(model, iter(batches))
    assert model.training and model.layers[0].dropout.training
    tokens = torch.cat([b.flatten(0, 1) for b in batches])
    factor = torch.ones(8)
    for index, gain in enumerate((2.0, 10.0)):
        ffn = torch.zeros_like(tokens)
        ffn[:, 2] = gain * factor[2] * tokens[:, 2]
        factor[2] = factor[2] * (1 + gain)
        for name, hidden in ((f"layers.{index}.ffn", ffn), (f"layers.{index}", tokens * factor)):
            assert report["modules"][name]["inf_norm"] == pytest.approx(float(hidden.abs().amax(-1).mean()), rel=1e-5)
            assert report["modules"][name]["kurtosis"] == pytest.approx(float(kurtosis(hidden).mean()), rel=1e-4)
            assert report["modules"][name]["peak_kurtosis"] == pytest.approx(float(kurtosis(hidden).max()), rel=1e-4)
    assert report["peak_kurtosis"] == max(m["peak_kurtosis"] for m in report["modules"].values())
    assert list(report["modules"]) == ["layers.0", "layers.0.ffn", "layers.1", "layers.1.ffn"]
    curves = [m["kurtosis"] for m in report["modules"].values()]
    assert report["max_kurtosis"] == max(curves) and report["mean_kurtosis"] == pytest.approx(sum(curves) / 4)
    assert report["max_inf_norm"] == max(m["inf_norm"] for m in report["modules"].values())


def test_padding_is_not_counted() -> None:
    model, x = Tower(), torch.randn(2, 4, 8)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    padded = outliers(model, [{"x": x.masked_fill(mask[..., None] == 0, 1e3), "attention_mask": mask}])
    alone = outliers(model, [x[:1], x[1:, :2]])
    assert padded["max_inf_norm"] == pytest.approx(alone["max_inf_norm"])
    assert padded["max_kurtosis"] == pytest.approx(alone["max_kurtosis"])


def test_named_modules_and_gates_are_not_layers() -> None:
    model = GPT(GPTConfig(8, 1, 2, 16, attention=HeadGatedAttention, attention_options={"gate": "mlp2"}))
    tokens = torch.randint(8, (2, 5))
    assert list(outliers(model, [tokens])["modules"]) == ["blocks.0", "blocks.0.ffn"]
    chosen = outliers(model, [tokens], modules=["norm", "blocks.0.attention.o_proj"])
    assert list(chosen["modules"]) == ["norm", "blocks.0.attention.o_proj"]


@pytest.mark.parametrize(
    ("name", "first", "part"), [("OPT", "decoder.layers.0", "fc2"), ("Bert", "encoder.layer.0", "output.dense")]
)
def test_transformers_models(name: str, first: str, part: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, f"{name}Config")(**sizes, max_position_embeddings=32, ffn_dim=64)
    model = transformers.AutoModel.from_config(config)
    ids = torch.randint(50, (2, 12))
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 8:] = 0
    found = outliers(model, [{"input_ids": ids, "attention_mask": mask}])["modules"]
    assert list(found)[:2] == [first, f"{first}.{part}"] and len(found) == 4

    def error(net: nn.Module) -> float:
        return float((net(input_ids=ids).last_hidden_state - exact).square().mean())

    exact = model.eval()(input_ids=ids).last_hidden_state.detach()
    errors = [ptq_evaluate(model, [{"input_ids": ids}], error, bits, bits)["quantized"] for bits in (3, 6, 32)]
    assert errors[0] > errors[1] > 100 * errors[2]


def test_bad_input() -> None:
    model, x = Tower(), torch.randn(1, 2, 8)
    with pytest.raises(ArgumentTypeError, match="model"):
        outliers("model", [x])  # type: ignore[arg-type]
    for batches in (x, "x", 3, {"x": x}):
        with pytest.raises(ArgumentTypeError, match="batches"):
            outliers(model, batches)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="a batch of batches"):
        outliers(model, [[x]])  # type: ignore[list-item]
    with pytest.raises(ArgumentValueError, match="at least one batch"):
        outliers(model, [])
    with pytest.raises(ArgumentValueError, match="nothing"):
        outliers(model, [x], modules=["nothing"])
    with pytest.raises(ArgumentTypeError, match="modules"):
        outliers(model, [x], modules="layers")
    with pytest.raises(StateError, match="ModuleList"):
        outliers(nn.Linear(8, 8), [x])
    with pytest.raises(StateError, match="no tokens"):
        outliers(model, [x[:, :0]])
    with pytest.raises(ArgumentValueError, match="two entries"):
        kurtosis(torch.ones(3, 1))
    with pytest.raises(ArgumentTypeError, match="x"):
        kurtosis(torch.ones(3, dtype=torch.long))
    assert not model.layers[0]._forward_hooks  # nothing stays behind
