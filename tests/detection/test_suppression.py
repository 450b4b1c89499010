"""Soft-NMS against its definition, its laws, its derivatives and its limits."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softgate import native
from softgate.detection import SoftNMS, nms, soft_nms
from softgate.dispatch import explain
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.lab.memory import peak_bytes

sys.path.append(str(Path(__file__).resolve().parent))
from box_cases import decay, definition, overlap, scene

METHODS = ("hard", "linear", "gaussian")
BACKENDS = ("reference", *(("native",) if native.available() else ()))
needs_native = pytest.mark.skipif(not native.available(), reason=native.unavailable_reason())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 2, 7, 60, 130])
def test_it_is_the_definition(count, method, backend):
    for seed in range(3):
        boxes, scores = scene(count, seed)
        keep, final = definition(boxes, scores, method)
        found = soft_nms(boxes, scores, method=method, backend=backend)
        assert torch.equal(found.keep, keep)
        torch.testing.assert_close(found.scores.double(), final, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_final_scores_are_products_over_earlier_picks(method):
    boxes, scores = scene(40, dtype=torch.float64)
    keep, final = soft_nms(boxes, scores, method=method, score_threshold=0.01)
    assert bool((final[1:] <= final[:-1]).all()) and int(keep[0]) == int(scores.argmax())
    for k, i in enumerate(keep.tolist()):
        expected = float(scores[i])
        for j in keep[:k].tolist():
            expected *= decay(overlap(boxes[j].tolist(), boxes[i].tolist()), method, 0.5, 0.3)
        assert abs(float(final[k]) - expected) <= 1e-12


@needs_native
@pytest.mark.parametrize("isa", native.info()["isas"])
def test_backends_agree_with_ties_and_duplicates(isa):
    with native.use_isa(isa):
        for seed in range(120):
            generator = torch.Generator().manual_seed(seed)
            count = int(torch.randint(1, 90, (), generator=generator))
            low = torch.randint(0, 12, (count, 2), generator=generator)
            boxes = torch.cat((low, low + torch.randint(0, 9, (count, 2), generator=generator)), 1).float()
            scores = torch.randint(0, 8, (count,), generator=generator) / 8
            method = METHODS[seed % 3]
            convention = ("default", "official", "mmcv", "mmcv_offset1", "effdet")[seed % 5]
            options = {"method": method, "convention": convention, "score_threshold": (0.05, 0.0, 0.125)[seed % 3]}
            ours = soft_nms(boxes, scores, backend="native", **options)
            plain = soft_nms(boxes, scores, backend="reference", **options)
            assert torch.equal(ours.keep, plain.keep), (seed, options)
            torch.testing.assert_close(ours.scores, plain.scores, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_limits_of_the_parameters(backend):
    boxes, scores = scene(50)
    order = scores.argsort(descending=True)
    for options in ({"method": "gaussian", "sigma": 1e30}, {"method": "linear", "iou_threshold": 1.0}):
        keep, final = soft_nms(boxes, scores, score_threshold=0.0, backend=backend, **options)
        assert torch.equal(keep, order) and torch.equal(final, scores[order])
    sharp = soft_nms(boxes, scores, sigma=1e-12, backend=backend)
    hard = soft_nms(boxes, scores, method="hard", iou_threshold=0.0, backend=backend)
    assert torch.equal(sharp.keep, hard.keep)


@pytest.mark.parametrize("backend", BACKENDS)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 60), method=st.sampled_from(METHODS))
@settings(max_examples=25, deadline=None)
def test_laws(seed, count, method, backend):
    boxes, scores = scene(count, seed, clusters=3)
    boxes = (boxes * 8).round() / 8  # moved and scaled exactly below
    found = soft_nms(boxes, scores, method=method, backend=backend)
    assert len(found.keep) <= count and len(found.keep.unique()) == len(found.keep)
    moved = soft_nms(4 * boxes + 64, scores, method=method, backend=backend)
    assert torch.equal(moved.keep, found.keep) and torch.equal(moved.scores, found.scores)
    weaker = soft_nms(boxes, scores / 4, method=method, score_threshold=1e-3 / 4, backend=backend)
    assert torch.equal(weaker.keep, found.keep) and torch.equal(4 * weaker.scores, found.scores)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    shuffled = soft_nms(boxes[order], scores[order], method=method, backend=backend)
    assert torch.equal(order[shuffled.keep], found.keep)
    everything = soft_nms(boxes, scores, score_threshold=0.0, backend=backend)
    assert len(everything.keep) == count


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_finite_differences(method):
    boxes, scores = scene(12, clusters=2, dtype=torch.float64)
    boxes.requires_grad_(), scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda b, s: soft_nms(b, s, method=method).scores, (boxes, scores))


def test_gradient_of_the_scores_is_their_decay_and_lone_boxes_do_not_move():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 1, 10, 11], [50, 50, 60, 60]]).requires_grad_()
    scores = torch.tensor([0.9, 0.8, 0.7], requires_grad=True)
    keep, final = soft_nms(boxes, scores)
    final.sum().backward()
    torch.testing.assert_close(scores.grad[keep], (final / scores[keep]).detach())
    assert bool((boxes.grad[2] == 0).all()) and bool((boxes.grad[:2] != 0).any())


def test_long_second_pass_is_cut_into_columns(monkeypatch):
    from softgate.detection import _final_scores

    boxes, scores = scene(40, dtype=torch.float64)
    whole = boxes.clone().requires_grad_()
    soft_nms(whole, scores).scores.square().sum().backward()
    monkeypatch.setattr(_final_scores, "COLUMNS", 7)
    cut = boxes.clone().requires_grad_()
    soft_nms(cut, scores).scores.square().sum().backward()
    torch.testing.assert_close(cut.grad, whole.grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_special_scores_and_boxes(backend):
    same = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).expand(5, 4)
    equal = soft_nms(same, torch.full((5,), 0.5), backend=backend)
    assert equal.keep[0] == 0 and equal.keep.tolist() == sorted(equal.keep.tolist())
    infinite = soft_nms(same, torch.tensor([1.0, float("inf"), float("inf"), 2.0, 3.0]), method="hard", backend=backend)
    assert infinite.keep.tolist() == [1]
    for method in METHODS:
        everything = soft_nms(same, torch.tensor([1.0, float("inf"), float("inf"), 2.0, 3.0]), method=method,
                              score_threshold=0.0, backend=backend)  # fmt: skip
        assert not bool(everything.scores.isnan().any()) and everything.keep[0] == 1
    points = torch.tensor([[1.0, 1.0, 1.0, 1.0]]).expand(3, 4)
    assert soft_nms(points, torch.tensor([0.3, 0.2, 0.1]), backend=backend).scores.tolist() == pytest.approx(
        [0.3, 0.2, 0.1]
    )
    backwards = soft_nms(torch.tensor([[0.0, 0, 4, 4], [3, 3, 1, 1]]), torch.tensor([0.9, 0.8]), validate=False,
                         backend=backend)  # fmt: skip
    assert backwards.scores.tolist() == pytest.approx([0.9, 0.8])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_lowered_in_float32(dtype, backend):
    boxes, scores = scene(30)
    low = soft_nms(boxes.to(dtype), scores.to(dtype), backend=backend)
    wide = soft_nms(boxes.to(dtype).float(), scores.to(dtype).float(), backend=backend)
    assert low.scores.dtype == dtype and torch.equal(low.keep, wide.keep)
    assert torch.equal(low.scores, wide.scores.to(dtype))


def test_formats_integers_and_empty_input():
    boxes, scores = scene(20)
    whole = boxes.round()
    found = soft_nms(whole, scores)
    assert torch.equal(soft_nms(whole.long(), scores).keep, found.keep)
    sizes = torch.cat((whole[:, :2], whole[:, 2:] - whole[:, :2]), 1)
    centres = torch.cat(((whole[:, :2] + whole[:, 2:]) / 2, sizes[:, 2:]), 1)
    assert torch.equal(soft_nms(sizes, scores, box_format="xywh").scores, found.scores)
    assert torch.equal(soft_nms(centres, scores, box_format="cxcywh").scores, found.scores)
    empty = soft_nms(whole[:0], scores[:0].half())
    assert empty.keep.shape == (0,) and empty.keep.dtype == torch.int64 and empty.scores.dtype == torch.float16


def test_a_decay_of_ones_own():
    boxes, scores = scene(30)
    mine = soft_nms(boxes, scores, method=lambda o: torch.exp(-o.square() / 0.5))
    assert torch.equal(mine.keep, soft_nms(boxes, scores).keep)
    assert explain(soft_nms, boxes, scores, method=lambda o: 1 - o).chosen == "reference"


def test_messages_name_the_first_bad_box():
    boxes, scores = scene(5)
    bad = boxes.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(ArgumentValueError, match=r"boxes\[3\]"):
        soft_nms(bad, scores)
    assert 3 not in soft_nms(bad, scores, nan="drop").keep
    with pytest.raises(ArgumentValueError, match="sigmoid"):
        soft_nms(boxes, scores - 0.5)
    with pytest.raises(ArgumentValueError, match=r"scores\[2\] = nan"):
        soft_nms(boxes, scores.index_fill(0, torch.tensor([2]), float("nan")))
    with pytest.raises(ArgumentTypeError, match="method"):
        soft_nms(boxes, scores, method=1)
    with pytest.raises(StateError, match="float64"):
        soft_nms(boxes.double(), scores.double(), backend="native")


@needs_native
def test_many_boxes_need_no_matrix():
    boxes, scores = scene(100_000, clusters=20_000)
    boxes = boxes + 40 * torch.arange(100_000).remainder(20_000)[:, None]  # the clusters lie apart
    found = []
    used = peak_bytes(lambda: found.append(soft_nms(boxes, scores)))
    assert len(found[-1].keep) > 20_000
    assert used is None or used < 200 * 2**20  # 100,000² overlaps in float32 would be 40 GB


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_hard_nms_is_brute_force(threshold):
    boxes, scores = scene(60)
    logits = scores.logit()
    kept = []
    for i in scores.argsort(descending=True).tolist():
        if all(overlap(boxes[i].tolist(), boxes[j].tolist()) <= threshold for j in kept):
            kept.append(i)
    assert nms(boxes, scores, threshold).tolist() == kept
    assert torch.equal(nms(boxes, logits, threshold), nms(boxes, scores, threshold))


def test_the_module_is_the_functions():
    boxes, scores = scene(40)
    layer = SoftNMS("linear", iou_threshold=0.5, max_per_image=9)
    assert torch.equal(layer(boxes, scores).keep, soft_nms(boxes, scores, method="linear", iou_threshold=0.5).keep[:9])
    images = torch.arange(40) // 20
    assert len(layer(boxes, scores, image_ids=images).keep) <= 18
    assert "iou_threshold=0.5" in repr(layer)
    with pytest.raises(ArgumentValueError, match="sigma"):
        SoftNMS(sigma=0.0)
