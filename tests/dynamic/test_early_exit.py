"""A network with exits: what it computes, in every mode of inference, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from exit_nets import Planted, mlp, with_exits
from torch import nn

from softgate.dynamic import EarlyExit, ExitFeatures, UncertaintyGate, exit_level, exit_probabilities, measure_costs
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError

MODES = ["compact", "masked", "sequential"]


def _count_rows(model: EarlyExit) -> list[int]:
    """Rows that each stage is called with from now on."""
    rows = [0] * len(model.stages)
    for place, stage in enumerate(model.stages):

        def hook(module, args, place=place):
            rows[place] += len(args[0])

        stage.register_forward_pre_hook(hook)
    return rows


def test_all_exits_are_the_heads_on_the_stages() -> None:
    net, x = mlp(), torch.randn(7, 12)
    model = EarlyExit.from_sequential(net, [2, 4, 6], x).eval()
    out = model(x)
    for place in range(3):
        torch.testing.assert_close(out.logits[place], model.heads[place](net[: 2 * place + 2](x)))
    torch.testing.assert_close(out.logits[3], net(x))
    torch.testing.assert_close(out.P, exit_probabilities(out.gate_logits))
    assert torch.equal(out.level, exit_level(out.gate_logits))
    assert torch.equal(out.y_logits, torch.stack([out.logits[e, n] for n, e in enumerate(out.level.tolist())]))
    assert torch.equal(out.at(torch.zeros(7, dtype=torch.int64)), out.logits[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [0, 1, 5, 64])
def test_inference_gives_what_the_exits_say(mode, rows) -> None:
    model, x = with_exits(), torch.randn(rows, 12)
    out = model(x)
    logits, level = model.infer(x, mode, min_compact=0.01)
    assert torch.equal(level, out.level) and logits.shape == (rows, 5)
    torch.testing.assert_close(logits, out.y_logits, rtol=1e-5, atol=1e-5)
    if rows == 64:
        assert len(set(level.tolist())) > 2, "samples must leave at several exits for this test to mean anything"


@pytest.mark.parametrize("mode", MODES)
def test_only_the_modes_that_say_so_drop_rows(mode) -> None:
    model, x = with_exits(), torch.randn(256, 12)
    level = model(x).level
    rows = _count_rows(model)
    model.infer(x, mode, min_compact=0.01)
    alive = [int((level >= place).sum()) for place in range(4)]
    assert rows == ([256 if count else 0 for count in alive] if mode == "masked" else alive)
    if mode == "compact":
        assert 16 < alive[-1] < 128


def test_rows_are_dropped_only_where_it_pays() -> None:
    x = torch.randn(64, 12)
    small, rare, costly = with_exits(), with_exits(), with_exits()
    for model in (small, rare, costly):
        model.gates[0] = Planted(0)
        model.gates[1], model.gates[2] = Planted(), Planted()
    share = float((rare(x).level == 0).float().mean())
    assert 0.05 < share < 0.6
    small(x[:1])  # counts its costs
    rows = _count_rows(rare)
    rare.infer(x, min_compact=share + 0.01)
    assert rows == [64] * 4
    rows = _count_rows(small)
    small.infer(x[:15], min_compact=0.01)
    assert rows == [15] * 4
    costly.set_costs(costly.costs, measure_costs(costly, x))
    wide = costly.measured.stages.clone()
    wide[1:] = 1  # as if nothing remained to be saved
    costly.measured = type(costly.measured)(wide, costly.measured.exits)
    rows = _count_rows(costly)
    costly.infer(x, min_compact=0.01)
    assert rows == [64] * 4


@pytest.mark.parametrize("mode", MODES)
def test_later_stages_are_not_called_once_all_have_left(mode) -> None:
    model, x = with_exits(), torch.randn(20, 12)
    model.gates[0] = Planted(*range(5))
    rows = _count_rows(model)
    logits, level = model.infer(x, mode)
    assert rows == [20, 0, 0, 0] and level.tolist() == [0] * 20
    torch.testing.assert_close(logits, model.heads[0](model.stages[0](x)))


@pytest.mark.parametrize("mode", MODES)
def test_a_budget_is_the_most_that_a_sample_may_cost(mode) -> None:
    model, x = with_exits(), torch.randn(40, 12)
    free = model(x)
    logits, level = model.infer(x, mode, budget=float(model.costs[1]) + 1e-9)
    assert torch.equal(level, free.level.clamp_max(1)) and float(model.costs[level].max()) <= float(model.costs[1])
    torch.testing.assert_close(logits, free.at(level), rtol=1e-5, atol=1e-5)
    with pytest.raises(ArgumentValueError, match="budget"):
        model.infer(x, mode, budget=float(model.costs[0]) / 2)


@pytest.mark.parametrize("mode", MODES)
def test_nan_goes_to_the_final_head_and_is_marked(mode) -> None:
    model, x = with_exits(), torch.randn(24, 12)
    x[3] = float("nan")
    others = torch.arange(24) != 3
    logits, level = model.infer(x, mode, min_compact=0.01)
    assert int(level[3]) == -1 and bool((level[others] >= 0).all())
    assert bool(logits[3].isnan().all()) and bool(logits[others].isfinite().all())
    assert torch.equal(level, model(x).level)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype) -> None:
    model, x = with_exits().to(dtype), torch.randn(40, 12, dtype=dtype)
    out = model(x)
    logits, level = model.infer(x, "masked")
    assert logits.dtype is dtype and torch.equal(level, out.level) and torch.equal(logits, out.y_logits)


def test_images_of_any_layout_pass_and_batch_norm_must_be_frozen() -> None:
    torch.manual_seed(0)
    body = [nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()), nn.Conv2d(8, 8, 3, 2, 1)]
    head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 16, 4))
    model = EarlyExit(body, [nn.Linear(8, 4)], [UncertaintyGate()], head, costs="measure").eval()
    images = torch.randn(20, 3, 16, 16)
    expected = model.infer(images)[0]
    assert 0.0 < float(model.costs[0]) < 1.0 and model.measured is not None
    for other in (images.to(memory_format=torch.channels_last), images.repeat(1, 2, 1, 1)[:, :3], images.double()):
        torch.testing.assert_close(model.infer(other.float())[0], expected)
    assert not model.train().stages[0][1].training, "a frozen backbone stays in eval mode"
    model.eval().stages[0][1].train()
    with pytest.raises(StateError, match="batch normalisation"):
        model.infer(images)
    with pytest.raises(StateError, match="eval"):
        model.train().infer(images)


def test_the_backbone_is_frozen_unless_it_shall_not_be() -> None:
    net, x = mlp(), torch.randn(3, 12)
    model = EarlyExit.from_sequential(net, [2], x)
    model(x).logits.sum().backward()
    assert all(p.grad is None for p in net.parameters()) and model.heads[0].weight.grad is not None
    free = EarlyExit(list(mlp()), [nn.Linear(12, 5)] * 8, [UncertaintyGate()] * 8, nn.Identity(), freeze=False)
    free(x).logits.sum().backward()
    assert free.stages[0].weight.grad is not None


def test_heads_without_an_example_find_their_widths_and_the_state_travels() -> None:
    x = torch.randn(9, 12)
    lazy = EarlyExit.from_sequential(mlp(), [2, 4]).eval()
    out = lazy(x)
    assert type(lazy.heads[0]) is nn.Linear and float(lazy.heads[0].weight.detach().std()) < 0.03
    other = EarlyExit.from_sequential(mlp(seed=1), [2, 4], x).eval()
    other.load_state_dict(lazy.state_dict())
    assert torch.equal(other(x).logits, out.logits) and torch.equal(other.costs, lazy.costs)


def test_costs_add_up_to_the_stages_that_ran() -> None:
    model, x = with_exits(), torch.randn(50, 12)
    costs = measure_costs(model, x)
    assert costs.stages.tolist() == [144, 144, 144, 144 + 60] and costs.exits.tolist() == [64, 64, 64, 0]
    level = model(x).level
    spent = sum(float(costs.stages[: e + 1].sum() + costs.exits[: e + 1].sum()) for e in level.tolist()) / 50
    whole = float(costs.stages.sum() + costs.exits.sum())
    assert costs.mean(level) == pytest.approx(spent / whole, abs=1e-12)
    assert model(x).mean_cost == pytest.approx(spent / whole, abs=1e-12)
    assert costs.overhead == pytest.approx(192 / 636)


def test_attention_is_counted() -> None:
    class Attend(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x)

    head = nn.Sequential(nn.Flatten(), nn.Linear(24, 2))
    model = EarlyExit([Attend(), nn.Identity()], [nn.Linear(4, 2)], [UncertaintyGate()], head)
    assert int(measure_costs(model, torch.randn(3, 6, 4)).stages[0]) == 2 * 6 * 6 * 4


def test_features_are_all_that_heads_and_gates_need() -> None:
    model, x = with_exits(), torch.randn(5, 12)
    features = model.features(x)
    assert isinstance(features, ExitFeatures) and not features.pooled[0].requires_grad
    assert torch.equal(model.exits(features).logits, model(x).logits)


def test_exits_do_not_guess_what_they_cost() -> None:
    x = torch.randn(5, 12)
    features = EarlyExit.from_sequential(mlp(), [2], x).features(x)
    with pytest.raises(StateError, match="measure_costs"):
        EarlyExit.from_sequential(mlp(), [2]).exits(features)


def _parts(**changed):
    stages = [nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)]
    parts = {"stages": stages, "heads": [nn.Linear(4, 3)] * 2, "gates": [UncertaintyGate()] * 2}
    return {**parts, "final_head": nn.Linear(4, 3), **changed}


@pytest.mark.parametrize(
    ("changed", "error", "word"),
    [
        ({"heads": [nn.Linear(4, 3)]}, ArgumentValueError, "heads"),
        ({"gates": [UncertaintyGate()] * 3}, ArgumentValueError, "gates"),
        ({"stages": [nn.Linear(4, 4)]}, ArgumentValueError, "stages"),
        ({"pools": [nn.Identity()]}, ArgumentValueError, "pools"),
        ({"stages": nn.Linear(4, 4)}, ArgumentTypeError, "stages"),
        ({"heads": [1, 2]}, ArgumentTypeError, "heads"),
        ({"final_head": torch.relu}, ArgumentTypeError, "final_head"),
        ({"costs": [0.5, 0.4, 1.0]}, ArgumentValueError, "costs"),
        ({"costs": [0.2, 0.4, 0.9]}, ArgumentValueError, "costs"),
        ({"costs": [0.5, 1.0]}, ArgumentValueError, "costs"),
        ({"costs": "flops"}, ArgumentValueError, "costs"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_parts_that_do_not_fit_are_refused(changed, error, word) -> None:
    with pytest.raises(error, match=word):
        EarlyExit(**_parts(**changed))


def test_bad_calls_are_refused() -> None:
    model, x = EarlyExit(**_parts()).eval(), torch.randn(6, 4)
    for options, error in (
        ({"mode": "fast"}, ArgumentValueError), ({"min_compact": 0.0}, ArgumentValueError),
        ({"mode": 3}, ArgumentTypeError), ({"budget": "0.5"}, ArgumentTypeError),
    ):  # fmt: skip
        with pytest.raises(error, match=next(iter(options))):
            model.infer(x, **options)
    with pytest.raises(ArgumentTypeError, match="x must be"):
        model([1, 2])
    with pytest.raises(ArgumentValueError, match="batch-first"):
        EarlyExit(**_parts(stages=[nn.Flatten(0), nn.Identity(), nn.Identity()]))(x)
    with pytest.raises(ArgumentValueError, match="two classes"):
        EarlyExit(**_parts(heads=[nn.Linear(4, 1)] * 2, final_head=nn.Linear(4, 1)))(x)
    with pytest.raises(ArgumentValueError, match="cuts"):
        EarlyExit.from_sequential(mlp(), [4, 2])
    with pytest.raises(ArgumentTypeError, match="seq"):
        EarlyExit.from_sequential(nn.Linear(2, 2), [1])
