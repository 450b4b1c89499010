"""What makes a comparison fair: every variant starts alike, sees the same rows, and can be trained."""

import math

import pytest
import torch

from softgate.errors import ArgumentValueError
from softgate.lab.compare.dataset import Dataset, divided
from softgate.lab.compare.scores import held_out_figures, registered_losses
from softgate.lab.compare.sites import SITES, resolve
from softgate.lab.compare.sizes import Size
from softgate.lab.compare.table_data import synthetic_table
from softgate.lab.compare.text_data import synthetic_text, text_dataset
from softgate.lab.compare.training import Setup, step_loss
from softgate.lab.compare.variants import Variant

SMALL = {
    "text": Size(
        {"num_layers": 1, "num_heads": 2, "embed_dim": 16, "length": 16, "n_experts": 4, "d_ff": 8}, 4, 10, 8, 8
    ),
    "images": Size({"depth": 1, "embed_dim": 8, "num_heads": 2, "patches": 4}, 4, 10, 8, 8, side=8),
    "table": Size({"hidden": (8,)}, 4, 10, 64, 64),
}


def small_images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (100, 3, 8, 8), dtype=torch.uint8, generator=generator).numpy()
    labels = (torch.arange(100) % 2).numpy()
    return Dataset("images", "noise", {"images": pixels, "labels": labels, "part": divided(labels)}, classes=("a", "b"))


DATA = {
    "text": text_dataset(synthetic_text().arrays["bytes"][:6000].tobytes(), "short", ""),
    "images": small_images(),
    "table": synthetic_table(),
}
EVERY = [(site.name, kind, name) for site in SITES.values() for kind in site.kinds for name in site.names()]


def prepared(site, kind, variant, seed=0):
    return Setup(DATA[kind], site, variant, SMALL[kind], 10, seed)


@pytest.mark.parametrize(("site", "kind", "name"), EVERY)
def test_every_method_starts_from_the_shared_values_and_trains(site, kind, name):
    torch.manual_seed(len(name))  # the state of the global generator must not matter
    found, again = (prepared(site, kind, Variant(name, name)) for _ in range(2))
    other = prepared(site, kind, Variant("base", {"attention": "softmax", "loss": "cross_entropy",
                                                  "activation": "relu", "router": "softmax"}[site]))  # fmt: skip
    shared = dict(other.model.named_parameters())
    common = [
        key for key, value in found.model.named_parameters() if key in shared and value.shape == shared[key].shape
    ]
    assert set(common) == set(shared), "every parameter of the plain network is in the variant's"
    for key, value in found.model.named_parameters():
        assert torch.equal(value, dict(again.model.named_parameters())[key])
        assert key not in shared or torch.equal(value, shared[key])
    for x, y in zip(found.task.batch(5), other.task.batch(5), strict=True):
        assert torch.equal(x, y)
    loss = step_loss(found.method.loss)(found.model, found.task.batch(0))
    loss.backward()
    assert bool(loss.isfinite())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in found.model.parameters())
    figures = held_out_figures(found.model.eval(), found.task.validation, found.method.loss, kind)
    assert 0.0 <= figures["accuracy"] <= 1.0 and all(map(math.isfinite, figures.values()))


def test_another_seed_is_another_start():
    first, second = (prepared("attention", "text", Variant("softmax", "softmax"), seed) for seed in (0, 1))
    assert not torch.equal(first.model.embedding.weight, second.model.embedding.weight)


def test_options_reach_the_method():
    gated = prepared("attention", "text", Variant("g", "gated", {"granularity": "headwise"}))
    assert gated.model.blocks[0].attention.granularity == "headwise"
    gate = prepared("router", "text", Variant("s", "softmax", {"k": 1, "renorm": "none"})).model.blocks[0].ffn.gate
    assert gate.k == 1
    loss = resolve("loss", Variant("c", "comp_sum", {"tau": 2.0}), gated.task.shape, SMALL["text"], 10).loss
    logits = torch.tensor([[2.0, 0.0]])
    assert float(loss.train(logits, torch.tensor([0]))) == pytest.approx(1 - float(logits.softmax(1)[0, 0]))


def test_the_short_names_of_the_issue_are_known():
    known = {site: set(SITES[site].names()) for site in SITES}
    assert {"softmax", "gated", "sigmoid", "softplus", "stablemax"} <= known["attention"]
    assert {"cross_entropy", "comp_sum", "stablemax", "taylor_softmax", "z_loss", "spherical_softmax",
            "l2_svm"} <= known["loss"]  # fmt: skip
    assert {"relu", "gelu", "hermite", "rational", "sine"} <= known["activation"]
    assert {"softmax", "sigmoid", "activation", "dense_to_sparse", "sigmoid_bias"} <= known["router"]


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ArgumentValueError, match=r"'softmx' is no method of attention; known are .*softplus"):
        prepared("attention", "text", Variant("softmx", "softmx"))


@pytest.mark.parametrize("name", sorted(registered_losses()))
def test_log_losses_are_those_of_probabilities(name):
    """The exponentials of minus the log losses of all classes add up to one, where a loss has probabilities."""
    log_loss = registered_losses()[name]({}).log_loss
    if log_loss is None:
        assert name in ("z_loss", "l2_svm", "crammer_singer", "comp_sum_margin")
        return
    logits = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    total = sum(math.exp(-float(log_loss(logits, torch.tensor([label])))) for label in range(4))
    assert total == pytest.approx(1.0, abs=1e-5)


def test_scores_that_are_no_numbers_have_no_accuracy():
    setup = prepared("loss", "table", Variant("l2_svm", "l2_svm"))
    with torch.no_grad():
        next(setup.model.parameters()).fill_(math.nan)
    figures = held_out_figures(setup.model, setup.task.test, setup.method.loss, "table")
    assert math.isnan(figures["accuracy"])
