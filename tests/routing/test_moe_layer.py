"""The MoE layer: padding, capacity, shared experts, losses, statistics, copies, checkpoints."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.routing import (
    DenseToSparse,
    GateOutput,
    MoE,
    SigmoidBias,
    TopKSoftmax,
    aux_losses,
    importance_loss,
    load_balancing_loss,
    router_z_loss,
    sequence_balance_loss,
    within_capacity,
)

AUX = {"load_balance": 0.01, "z": 1e-3, "importance": 0.1, "sequence": 0.01}


def layer(experts=4, k=2, spread=0.5, **options) -> MoE:
    made = MoE(8, 12, experts, k, **options)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=spread)
    return made


def swiglu(x, gate_up, down):
    gate, up = (x @ gate_up.t()).chunk(2, -1)
    return (functional.silu(gate) * up) @ down.t()


def test_the_layer_is_its_formula() -> None:
    moe, x = layer(n_shared=2), torch.randn(3, 5, 8)
    y = moe(x).view(15, 8)
    routed = moe.gate(x.view(15, 8))
    for t in range(15):
        expected = moe.shared(x.view(15, 8)[t])
        for e, w in zip(routed.indices[t], routed.weights[t], strict=True):
            expected = expected + w * swiglu(x.view(15, 8)[t], moe.experts.gate_up_proj[e], moe.experts.down_proj[e])
        torch.testing.assert_close(y[t], expected, rtol=1e-4, atol=1e-5)


def test_one_expert_is_the_dense_network() -> None:
    moe, x = layer(experts=1, k=1), torch.randn(6, 8)
    torch.testing.assert_close(moe(x), swiglu(x, moe.experts.gate_up_proj[0], moe.experts.down_proj[0]))


def test_padding_changes_nothing_and_counts_nowhere() -> None:
    moe = layer(gate=SigmoidBias(8, 4, 2), aux=AUX)
    x, mask = torch.randn(2, 7, 8), torch.ones(2, 7, dtype=torch.bool)
    mask[0, 5:] = False
    mask[1, 2:] = False
    short = [x[0, :5], x[1, :2]]
    padded = moe(x, mask)
    losses, stats, load = aux_losses(moe), moe.stats, moe.gate.load.clone()
    assert not padded[~mask].any()
    torch.testing.assert_close(padded[mask], torch.cat([moe(piece) for piece in short]))
    assert int(load.sum()) == int(stats["load"].sum()) == 14
    with torch.no_grad():
        x[~mask] = 1e6
    changed = moe(x, mask)
    assert torch.equal(changed[mask], padded[mask])
    for name, value in aux_losses(moe).items():
        assert torch.equal(value, losses[name])
    nothing = moe(x, torch.zeros_like(mask))
    assert not nothing.any() and moe.stats["max_violation"] == 0


def test_tokens_that_are_no_numbers_are_dropped_and_counted() -> None:
    moe, x = layer(aux=AUX), torch.randn(9, 8)
    with torch.no_grad():
        x[2, 1], x[5, 0] = float("nan"), float("inf")
    y = moe(x)
    assert moe.stats["bad_tokens"] == 2 and not y[[2, 5]].any() and y.isfinite().all()
    (y.square().sum() + sum(aux_losses(moe).values())).backward()
    assert all(p.grad.isfinite().all() for p in moe.parameters())
    with pytest.raises(StateError, match="strict"):
        layer(strict=True)(x)


def test_capacity_keeps_the_largest_weights() -> None:
    moe, x = layer(capacity_factor=0.5), torch.randn(40, 8)
    y, routed = moe(x), moe.gate(x)
    limit = math.ceil(0.5 * 80 / 4)
    assert (moe.stats["load"] <= limit).all() and 0 < moe.stats["dropped"] < 1
    expected = torch.zeros(40, 8)
    for e in range(4):
        weight = torch.where(routed.indices == e, routed.weights, 0.0).sum(-1)
        kept = weight.argsort(descending=True, stable=True)[:limit]
        kept = kept[weight[kept] > 0]
        out = swiglu(x[kept], moe.experts.gate_up_proj[e], moe.experts.down_proj[e])
        expected[kept] += weight[kept, None] * out
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(layer(capacity_factor=1e9)(x).isfinite(), torch.ones(40, 8, dtype=torch.bool))


def test_capacity_by_brute_force() -> None:
    indices, weights = torch.randint(0, 4, (30, 2)), torch.randint(0, 5, (30, 2)).float()  # 3 stands for none
    found = within_capacity(indices, weights, 3, 7).flatten()
    flat = indices.flatten()
    for e in range(3):
        places = [i for i in range(60) if flat[i] == e]
        kept = sorted(places, key=lambda i: -float(weights.flatten()[i]))[:7]
        assert {i for i in places if found[i] == e} == set(kept)
    assert (found[flat == 3] == 3).all()


# Losses.


def test_balance_losses_at_equal_and_at_one_sided_loads() -> None:
    uniform, turns = torch.full((8, 4), 0.25), torch.arange(16).view(8, 2) % 4
    assert torch.isclose(load_balancing_loss(uniform, turns), torch.tensor(1.0))
    assert torch.isclose(load_balancing_loss(uniform, turns, normalise="mixtral"), torch.tensor(2.0))
    assert torch.isclose(sequence_balance_loss(uniform[None], turns[None]), torch.tensor(1.0))
    one = torch.zeros(8, 4)
    one[:, 2] = 1.0
    assert load_balancing_loss(one, torch.full((8, 1), 2)) == 4.0
    assert importance_loss(uniform) == 0.0 and torch.isclose(importance_loss(one), torch.tensor(4.0))
    assert torch.isclose(importance_loss(7.0 * one), importance_loss(one))
    v = torch.tensor([[3.0, 1.0], [0.5, 0.2]])
    a, b = v.sum(0)
    torch.testing.assert_close(importance_loss(v), 2 * ((a - b) / (a + b)) ** 2)
    shares = torch.randn(50, 4).softmax(-1)
    chosen = shares.topk(1).indices
    assert load_balancing_loss(shares, chosen) >= 1.0  # where f and P agree, it is at least the equal load's


def test_masks_of_losses_equal_removing_rows() -> None:
    logits, keep = torch.randn(20, 4), torch.rand(20) > 0.4
    probs, indices = logits.softmax(-1), logits.topk(2).indices
    torch.testing.assert_close(
        load_balancing_loss(probs, indices, keep), load_balancing_loss(probs[keep], indices[keep])
    )
    torch.testing.assert_close(router_z_loss(logits, keep), router_z_loss(logits[keep]))
    torch.testing.assert_close(
        sequence_balance_loss(probs[None], indices[None], keep[None]),
        sequence_balance_loss(probs[keep][None], indices[keep][None]),
    )


def test_the_gradient_of_balance_goes_through_the_mean_probability_only() -> None:
    probs = torch.randn(10, 4, dtype=torch.float64).softmax(-1).requires_grad_()
    indices = probs.topk(1).indices
    gradient = torch.autograd.grad(load_balancing_loss(probs, indices), probs)[0]
    f = torch.bincount(indices[:, 0], minlength=4).double() / 10
    torch.testing.assert_close(gradient, (4 * f / 10).expand(10, 4))


def test_losses_are_collected_over_layers_and_injected() -> None:
    torch.manual_seed(1)
    plain = nn.Sequential(layer(aux=AUX), layer(aux={"z": 0.5}))
    injected = copy.deepcopy(plain)
    for module in injected:
        module.inject_aux = True
    x = torch.randn(11, 8)
    losses = aux_losses(plain) if plain(x) is not None else {}
    assert list(losses) == list(AUX)
    torch.testing.assert_close(losses["z"], plain[0]._terms["z"] + plain[1]._terms["z"])
    (plain(x).square().mean() + sum(aux_losses(plain).values())).backward()
    y = injected(x)
    torch.testing.assert_close(y, plain(x))
    y.square().mean().backward()
    for a, b in zip(plain.parameters(), injected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    plain.eval()(x)
    assert aux_losses(plain) == {}


def test_sequences_are_balanced_one_by_one() -> None:
    moe = layer(aux={"sequence": 1.0})
    x = torch.randn(3, 6, 8)
    moe(x)
    together = aux_losses(moe)["sequence"]
    alone = []
    for row in x:
        moe(row[None])
        alone.append(aux_losses(moe)["sequence"])
    torch.testing.assert_close(together, torch.stack(alone).mean())


# Copies, checkpoints, compilers.


def test_copies_pickles_and_state_dicts() -> None:
    moe, x = layer(gate=SigmoidBias(8, 4, 2), bias=True, n_shared=1), torch.randn(5, 8)
    y = moe(x)
    for twin in (copy.deepcopy(moe), pickle.loads(pickle.dumps(moe))):
        assert torch.equal(twin(x), y)
    other = layer(gate=SigmoidBias(8, 4, 2), bias=True, n_shared=1)
    other.load_state_dict(moe.state_dict())
    assert torch.equal(other(x), y)
    assert {"gate.weight", "experts.gate_up_proj", "experts.down_proj"} <= set(moe.state_dict())


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints_count_once_and_give_the_same(reentrant) -> None:
    torch.manual_seed(2)
    plain = layer(gate=SigmoidBias(8, 4, 2), aux=AUX, inject_aux=True)
    saved = copy.deepcopy(plain)
    x = torch.randn(9, 8, requires_grad=True)
    plain(x).square().sum().backward()
    expected, x.grad = x.grad, None
    checkpoint(saved, x, use_reentrant=reentrant).square().sum().backward()
    torch.testing.assert_close(x.grad, expected)
    assert torch.equal(saved.gate.load, plain.gate.load) and int(saved.gate.load.sum()) == 18
    for a, b in zip(plain.parameters(), saved.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_compile_and_export() -> None:
    moe, x = layer(n_shared=1).eval(), torch.randn(2, 5, 8)
    compiled = torch.compile(moe, backend="aot_eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(x), moe(x))
    torch.testing.assert_close(compiled(x[:, :3]), moe(x[:, :3]))
    exported = torch.export.export(moe, (x,))
    assert "softgate.moe_ffn" in str(exported.graph)
    torch.testing.assert_close(exported.module()(x), moe(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_training_compiles() -> None:
    plain = layer(aux=AUX)
    compiled = torch.compile(copy.deepcopy(plain), backend="aot_eager", fullgraph=True)
    x = torch.randn(7, 8)
    for module in (plain, compiled):
        module(x).square().sum().backward()
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_autocast_keeps_the_router_in_float32() -> None:
    moe, x = layer(), torch.randn(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = moe(x)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), moe(x), rtol=5e-2, atol=5e-2)


# Up-cycling, gates of one's own, bad input.


class _Mlp(nn.Module):
    def __init__(self, names, act) -> None:
        super().__init__()
        for name in names:
            down = name in ("down_proj", "w_out", "w2", "fc2")
            setattr(self, name, nn.Linear(*((12, 8) if down else (8, 12)), bias=False))
        if act is not None:
            self.act_fn = act

    def forward(self, x):
        *ups, down = list(self.children())[: 3 if hasattr(self, "w1") or hasattr(self, "gate_proj") else 2]
        act = getattr(self, "act_fn", functional.silu)
        return down(act(ups[0](x)) * ups[1](x)) if len(ups) == 2 else down(act(ups[0](x)))


@pytest.mark.parametrize(
    "dense",
    [
        nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)),
        _Mlp(("gate_proj", "up_proj", "down_proj"), nn.SiLU()),
        _Mlp(("w1", "w3", "w2"), None),
        _Mlp(("fc1", "fc2"), nn.ReLU()),
    ],
    ids=["sequential", "llama", "torchtitan", "plain"],
)
def test_up_cycling_starts_where_the_dense_network_was(dense) -> None:
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(MoE.from_dense(dense, 4)(x), dense(x), rtol=1e-4, atol=1e-5)
    noisy = MoE.from_dense(dense, 4, noise=0.1, top_k=1, aux=None, gate=TopKSoftmax(8, 4, 1, renorm="none"))
    assert (noisy(x) - dense(x)).abs().max() > 1e-3
    spread = (
        noisy.experts.down_proj - list(dense.parameters())[-1 if not isinstance(dense, nn.Sequential) else 2]
    ).std()
    assert 0 < spread < 0.1


def test_networks_that_are_not_known_are_refused() -> None:
    with pytest.raises(StateError, match="no feed-forward network"):
        MoE.from_dense(nn.Linear(8, 8), 4)
    with pytest.raises(ArgumentValueError, match="activation"):
        MoE.from_dense(nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8)), 4)


def test_any_callable_is_a_gate() -> None:
    def first(x):
        logits = torch.zeros(x.shape[0], 4)
        return GateOutput(torch.zeros(x.shape[0], 1, dtype=torch.int64), logits[:, :1] + 1, logits, logits.softmax(-1))

    moe, x = layer(gate=first), torch.randn(6, 8)
    torch.testing.assert_close(moe(x), swiglu(x, moe.experts.gate_up_proj[0], moe.experts.down_proj[0]))
    assert moe.stats["max_violation"] == 3.0
    sparse = layer(gate=DenseToSparse(8, 4, steps=5))
    assert sparse(x).isfinite().all() and 6 <= int(sparse.stats["load"].sum()) <= 24


def test_shapes_and_statistics() -> None:
    moe = layer()
    for shape in ((8,), (0, 8), (3, 8), (2, 0, 8), (2, 3, 8)):
        assert moe(torch.randn(shape)).shape == shape
    moe(torch.randn(50, 8))
    stats = moe.stats
    assert int(stats["load"].sum()) == 100 and stats["dropped"] == 0
    assert 0 < stats["load_entropy"] <= math.log(4) + 1e-6 and 0 < stats["router_entropy"] <= math.log(4) + 1e-6
    with pytest.raises(StateError, match="none yet"):
        _ = layer().stats


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"k": 0}, ArgumentValueError, "top_k"),
        ({"k": 5}, ArgumentValueError, "top_k"),
        ({"gate": "router"}, ArgumentValueError, "gate"),
        ({"gate": 3}, ArgumentTypeError, "gate"),
        ({"gate": TopKSoftmax(8, 6)}, ArgumentValueError, "gate"),
        ({"activation": "swish"}, ArgumentValueError, "activation"),
        ({"backend": "cuda"}, ArgumentValueError, "backend"),
        ({"aux": {"balance": 1.0}}, ArgumentValueError, "aux"),
        ({"aux": {"z": -1.0}}, ArgumentValueError, "aux"),
        ({"aux": ["z"]}, ArgumentTypeError, "aux"),
        ({"capacity_factor": 0.0}, ArgumentValueError, "capacity_factor"),
        ({"n_shared": -1}, ArgumentValueError, "n_shared"),
        ({"bias": "yes"}, ArgumentTypeError, "bias"),
        ({"widht": 3}, ArgumentTypeError, "widht"),
    ],
)
def test_bad_arguments(options, error, word) -> None:
    with pytest.raises(error, match=word):
        layer(**options)


def test_bad_inputs() -> None:
    moe = layer()
    with pytest.raises(ArgumentValueError, match="x"):
        moe(torch.randn(3, 7))
    with pytest.raises(ArgumentTypeError, match="x"):
        moe(torch.ones(3, 8, dtype=torch.int64))
    with pytest.raises(ArgumentTypeError, match="mask"):
        moe(torch.randn(3, 8), torch.ones(3))
    with pytest.raises(ArgumentValueError, match="mask"):
        moe(torch.randn(3, 8), torch.ones(4, dtype=torch.bool))
