"""The head: LinearSVC as the oracle, decision rules, the binary machine, calibration."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.errors import ArgumentValueError, StateError
from softgate.losses import SVMHead, crammer_singer_loss, l2_svm_loss

NO_SKLEARN = "scikit-learn is not installed: nothing to compare the trained machine with"


def digits() -> tuple[Tensor, Tensor]:
    data = pytest.importorskip("sklearn.datasets", reason=NO_SKLEARN).load_digits()
    return torch.tensor(data.data / 16.0), torch.tensor(data.target)


def train(head: SVMHead, features: Tensor, labels: Tensor) -> SVMHead:
    """To the minimum of the full-batch objective."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    options = {"tolerance_grad": 1e-9, "tolerance_change": 1e-15, "history_size": 50}
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=500, line_search_fn="strong_wolfe", **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = head.loss(head(features), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return head


def test_the_minimum_is_that_of_linear_svc() -> None:
    svm = pytest.importorskip("sklearn.svm", reason=NO_SKLEARN)
    features, labels = digits()
    head = SVMHead(64, 10, C=0.1, reduction="sum", bias=False, dtype=torch.float64)
    train(head, features, labels)
    oracle = svm.LinearSVC(C=0.1, loss="squared_hinge", fit_intercept=False, tol=1e-10, max_iter=100_000)
    oracle.fit(features.numpy(), labels.numpy())
    torch.testing.assert_close(head.weight.detach(), torch.tensor(oracle.coef_), rtol=0, atol=2e-6)
    assert head.predict(features).tolist() == oracle.predict(features.numpy()).tolist()
    scores = head.decision_function(features).detach()
    torch.testing.assert_close(scores, torch.tensor(oracle.decision_function(features.numpy())), rtol=0, atol=1e-5)
    # the authors' rule on the same scores
    right = [float((head.decide(scores, rule) == labels).double().mean()) for rule in ("argmax", "sign_argmax")]
    assert right[0] > 0.97 and right[1] < right[0] - 0.03


def test_the_minimum_is_that_of_linear_svc_for_two_classes_and_one_score() -> None:
    svm = pytest.importorskip("sklearn.svm", reason=NO_SKLEARN)
    features, labels = digits()
    labels = (labels >= 5).long()
    head = train(SVMHead(64, 1, C=0.5, reduction="sum", bias=False, dtype=torch.float64), features, labels)
    oracle = svm.LinearSVC(C=0.5, loss="squared_hinge", fit_intercept=False, tol=1e-10, max_iter=100_000)
    oracle.fit(features.numpy(), labels.numpy())
    torch.testing.assert_close(head.weight.detach(), torch.tensor(oracle.coef_), rtol=0, atol=1e-5)
    assert head.predict(features).tolist() == oracle.predict(features.numpy()).tolist()


def test_the_minimum_for_crammer_singer_beats_the_oracle_s() -> None:
    """liblinear stops early on this objective; the sub-gradient of a linear hinge does too, so objectives compare."""
    svm = pytest.importorskip("sklearn.svm", reason=NO_SKLEARN)
    features, labels = digits()
    features, labels = features[:300], labels[:300]
    oracle = svm.LinearSVC(C=0.1, multi_class="crammer_singer", fit_intercept=False, tol=1e-9, max_iter=100_000)
    oracle.fit(features.numpy(), labels.numpy())
    head = SVMHead(64, 10, C=0.1, multiclass="crammer_singer", reduction="sum", bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(oracle.coef_))
    best = float(head.loss(head(features), labels).detach())
    for seed in range(20):  # nothing nearby is better, so it is the minimum of our convex objective
        torch.manual_seed(seed)
        moved = pickle.loads(pickle.dumps(head))
        with torch.no_grad():
            moved.weight += 0.01 * torch.randn_like(moved.weight)
        assert float(moved.loss(moved(features), labels).detach()) > best


def test_C_to_zero_takes_the_weights_to_zero() -> None:
    features, labels = digits()
    sizes = [
        float(train(SVMHead(64, 10, C=C, bias=False, dtype=torch.float64), features, labels).weight.detach().norm())
        for C in (1.0, 1e-3, 1e-6)
    ]
    assert sizes[0] > sizes[1] > sizes[2] and sizes[2] < 1e-4


def test_argmax_is_symmetric_in_the_classes_and_the_rule_on_signs_is_not() -> None:
    head = SVMHead(5, 4)
    scores = torch.tensor([[0.1, 2.0, -1.0, 0.5], [-1.0, -2.0, -0.5, -3.0]])
    order = torch.tensor([3, 2, 1, 0])
    assert head.decide(scores).tolist() == [1, 2]
    assert head.decide(scores[:, order]).tolist() == [2, 1]
    assert head.decide(scores, "sign_argmax").tolist() == [0, 0]
    assert order[head.decide(scores[:, order], "sign_argmax")].tolist() == [3, 3]


@pytest.mark.parametrize("multiclass", ["one_vs_rest", "crammer_singer"])
def test_loss_is_the_function_s_with_the_own_weight(multiclass) -> None:
    head = SVMHead(6, 3, C=0.4, multiclass=multiclass, margin=0.7, reg="mean")
    function, hinge = (l2_svm_loss, "squared") if multiclass == "one_vs_rest" else (crammer_singer_loss, "linear")
    features, labels = torch.randn(2, 5, 6), torch.randint(3, (2, 5))
    scores = head(features)
    want = function(
        scores.flatten(0, 1), labels.flatten(), C=0.4, margin=0.7, hinge=hinge, head_weight=head.weight, reg="mean"
    )
    torch.testing.assert_close(head.loss(scores, labels), want)
    shares = F.one_hot(labels, 3).float()
    torch.testing.assert_close(head.loss(scores, shares), want)
    single = function(scores[0, 0], labels[0, 0], C=0.4, margin=0.7, hinge=hinge, head_weight=head.weight, reg="mean")
    torch.testing.assert_close(head.loss(scores[0, 0], labels[0, 0]), single)
    assert head.predict(features).shape == (2, 5)
    torch.testing.assert_close(head.penalty(), head.weight.square().mean())


def test_the_bias_is_free() -> None:
    head = SVMHead(3, 2, C=1e-9, reduction="sum")
    head.loss(head(torch.randn(4, 3)), torch.tensor([0, 1, 0, 1])).backward()
    torch.testing.assert_close(head.weight.grad, head.weight.detach(), rtol=1e-4, atol=1e-6)
    assert float(head.bias.grad.abs().max()) < 1e-7


def test_binary_machine() -> None:
    head = SVMHead(3, 1)
    features, labels = torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
    scores = head(features)
    for target in (labels, labels.float().unsqueeze(1), 2 * labels.float().unsqueeze(1) - 1):
        torch.testing.assert_close(head.loss(scores, target), head.loss(scores, labels))
    y = 2 * labels.float() - 1
    hinge = (1 - y * scores[:, 0]).clamp(min=0).square().mean()
    torch.testing.assert_close(head.loss(scores, labels), hinge + head.penalty())
    assert head.predict(features).tolist() == (scores[:, 0] > 0).long().tolist()


def test_calibrated_probabilities() -> None:
    torch.manual_seed(1)
    head = SVMHead(2, 3)
    features, labels = torch.randn(600, 2), torch.randint(3, (600,))
    features += 2 * torch.eye(3)[labels][:, :2]
    with pytest.raises(StateError, match="calibrate"):
        head.predict_proba(features)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        head.loss(head(features), labels).backward()
        optimizer.step()
    head.calibrate(features, labels)
    p = head.predict_proba(features)
    torch.testing.assert_close(p.sum(1), torch.ones(600))
    # the maximum of the likelihood: each column's mean probability is its (smoothed) frequency
    one = torch.sigmoid(head.platt[0] * head(features).detach() + head.platt[1])
    torch.testing.assert_close(one.mean(0), labels.bincount() / 600.0, rtol=0, atol=0.01, check_dtype=False)
    assert float(F.nll_loss(p.log(), labels)) < 0.8
    again = SVMHead(2, 3)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.predict_proba(features), p)


def test_calibration_of_separated_scores_stays_finite() -> None:
    head = SVMHead(1, 1)
    features, labels = torch.linspace(-1, 1, 20).unsqueeze(1), (torch.arange(20) >= 10).long()
    with torch.no_grad():
        head.weight.fill_(5.0)
        head.bias.zero_()
    head.calibrate(features, labels)
    p = head.predict_proba(features)
    assert p.shape == (20, 2) and bool(p.isfinite().all()) and bool((p.argmax(1) == labels).all())


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"in_features": -1}, "in_features"),
        ({"C": 0.0}, "C"),
        ({"margin": -1.0}, "margin"),
        ({"reg": "l2"}, "reg"),
        ({"hinge": "cubic"}, "hinge"),
        ({"reduction": "none"}, "reduction"),
        ({"multiclass": "ovo"}, "multiclass"),
        ({"multiclass": "crammer_singer", "num_classes": 1}, "crammer_singer"),
        ({"multiclass": "crammer_singer", "over_classes": "mean"}, "over_classes"),
    ],
)
def test_bad_options(kwargs, word) -> None:
    with pytest.raises(ArgumentValueError, match=word):
        SVMHead(**{"in_features": 4, "num_classes": 3, **kwargs})


def test_bad_calls() -> None:
    head, binary = SVMHead(4, 3), SVMHead(4, 1)
    with pytest.raises(ArgumentValueError, match="scores must have shape"):
        head.loss(torch.ones(2, 4), torch.tensor([0, 1]))
    with pytest.raises(ArgumentValueError, match="target"):
        head.loss(torch.ones(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ArgumentValueError, match="target of the binary machine"):
        binary.loss(torch.ones(2, 1), torch.tensor([0, 2]))
    with pytest.raises(ArgumentValueError, match="rule"):
        head.decide(torch.ones(2, 3), "sign")
    with pytest.raises(ArgumentValueError, match="features and target"):
        head.calibrate(torch.ones(2, 4), torch.ones(3, dtype=torch.long))


def test_repr_says_what_it_is() -> None:
    assert "multiclass='one_vs_rest', reg='mean', C=2.0" in repr(SVMHead(4, 3, C=2.0, reg="mean"))
