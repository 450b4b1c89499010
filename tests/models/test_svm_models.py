"""GRU-SVM, CNN-SVM and the cell: loops against the fast sequence, initial weights, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.losses import l2_svm_loss
from softgate.models import CNNSVM, GRUSVM, GRUCellResetBefore
from softgate.models.gru_reset_before import gru_sequence, sequence_reference


def written_out(cell: GRUCellResetBefore, x: Tensor, h: Tensor) -> Tensor:
    """The published equations, unit by unit."""
    W, U, b, H = cell.weight_ih, cell.weight_hh, cell.bias, cell.hidden_size
    r = torch.sigmoid(x @ W[:H].T + h @ U[:H].T + b[:H])
    u = torch.sigmoid(x @ W[H : 2 * H].T + h @ U[H : 2 * H].T + b[H : 2 * H])
    c = torch.tanh(x @ W[2 * H :].T + (r * h) @ U[2 * H :].T + b[2 * H :])
    return u * h + (1 - u) * c


def test_cell_is_the_published_one() -> None:
    cell = GRUCellResetBefore(3, 5, dtype=torch.float64)
    x, h = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(cell(x, h), written_out(cell, x, h))
    torch.testing.assert_close(cell(x), written_out(cell, x, torch.zeros_like(h)))
    inputs = torch.randn(4, 6, 3, dtype=torch.float64)
    states = cell.scan(inputs, h)
    for t in range(6):
        h = written_out(cell, inputs[:, t], h)
        torch.testing.assert_close(states[:, t], h)
    torch.testing.assert_close(cell.scan(inputs[:, :1])[:, 0], cell(inputs[:, 0]))


def test_equals_torch_where_the_state_does_not_reach_the_candidate() -> None:
    cell, theirs = GRUCellResetBefore(3, 5), torch.nn.GRUCell(3, 5)
    with torch.no_grad():
        cell.weight_hh[10:] = 0.0
        theirs.weight_ih.copy_(cell.weight_ih)
        theirs.weight_hh.copy_(cell.weight_hh)
        theirs.bias_ih.copy_(cell.bias)
        theirs.bias_hh.zero_()
    x, h = torch.randn(4, 3), torch.randn(4, 5)
    torch.testing.assert_close(cell(x, h), theirs(x, h))
    with torch.no_grad():
        cell.weight_hh[10:] = 1.0
        theirs.weight_hh.copy_(cell.weight_hh)
    assert float((cell(x, h) - theirs(x, h)).abs().max().detach()) > 1e-2


def tensors(steps: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = ((steps, 4, 9), (4, 3), (9, 3))
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("wanted", [(0, 1, 2), (0,), (1,), (2,)])
def test_fast_sequence_equals_the_loop(steps, wanted) -> None:
    values = [t if i in wanted else t.detach() for i, t in enumerate(tensors(steps))]
    leaves = [values[i] for i in wanted]
    fast, slow = gru_sequence(*values), sequence_reference(*values)
    assert type(fast.grad_fn) is not type(slow.grad_fn)  # the loop's graph was not built
    torch.testing.assert_close(fast, slow)
    grad = torch.randn_like(fast)
    got, want = torch.autograd.grad(fast, leaves, grad), torch.autograd.grad(slow, leaves, grad)
    torch.testing.assert_close(got, want)


def test_derivatives_of_both_orders() -> None:
    values = tensors(3)
    assert torch.autograd.gradcheck(gru_sequence, values, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(gru_sequence, values)


def test_transforms_take_the_loop() -> None:
    drive, state, weight = (t.detach() for t in tensors(3))
    tangents = tuple(torch.randn_like(t) for t in (drive, state, weight))
    got = torch.func.jvp(gru_sequence, (drive, state, weight), tangents)
    want = torch.func.jvp(sequence_reference, (drive, state, weight), tangents)
    torch.testing.assert_close(got, want)
    several = torch.stack((drive, 2 * drive))
    together = torch.func.vmap(gru_sequence, (0, None, None))(several, state, weight)
    torch.testing.assert_close(together[1], gru_sequence(2 * drive, state, weight))


def test_a_second_backward_finds_what_was_kept() -> None:
    values = tensors(4)
    out = gru_sequence(*values).square().sum()
    first = torch.autograd.grad(out, values, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(out, values), first, rtol=0, atol=0)


def test_strided_and_16_bit_inputs() -> None:
    cell = GRUCellResetBefore(3, 4)
    wide = torch.randn(2, 5, 6)
    torch.testing.assert_close(cell.scan(wide[..., ::2]), cell.scan(wide[..., ::2].contiguous()))
    narrow = GRUCellResetBefore(3, 4, dtype=torch.bfloat16)
    assert narrow.scan(torch.randn(2, 5, 3).bfloat16()).dtype == torch.bfloat16


@pytest.mark.slow
def test_compiles_in_one_graph() -> None:
    model = GRUSVM(4, 3, dropout=0.0)
    symbols = torch.randint(4, (2, 3))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(symbols), model(symbols))


def test_cell_starts_as_tensorflow_s() -> None:
    cell = GRUCellResetBefore(10, 50)
    assert cell.bias.tolist() == [1.0] * 100 + [0.0] * 50
    for rows, outputs in ((slice(100), 100), (slice(100, None), 50)):
        bound = (6 / (60 + outputs)) ** 0.5
        largest = max(float(w[rows].abs().max().detach()) for w in (cell.weight_ih, cell.weight_hh))
        assert 0.95 * bound < largest <= bound


def test_models_start_as_the_papers_say() -> None:
    gru, cnn = GRUSVM(hidden_size=200), CNNSVM(widths=(8, 16, 200))
    assert 0.008 < float(gru.head.weight.std().detach()) < 0.012 and gru.head.bias.tolist() == pytest.approx([0.1] * 2)
    for weight in (cnn.features[3].weight, cnn.head.weight):
        assert float(weight.abs().max().detach()) <= 0.2 and 0.08 < float(weight.std().detach()) < 0.09
    assert bool((cnn.features[0].bias == 0.1).all()) and bool((cnn.head.bias == 0.1).all())
    assert (GRUSVM().dropout, GRUSVM(head="softmax").dropout) == (0.15, 0.2)


@pytest.mark.parametrize("cell", ["tf", "torch"])
def test_gru_svm_reads_symbols(cell) -> None:
    model = GRUSVM(5, 4, cell=cell, unknown="zeros").eval()
    symbols = torch.tensor([[0, 4, 2], [1, 3, 3]])
    state = model.encode(symbols)
    carried = model.encode(symbols[:, 2:], model.encode(symbols[:, :2]))
    torch.testing.assert_close(carried, state)
    torch.testing.assert_close(model.encode(symbols.to(torch.uint8)), state)
    torch.testing.assert_close(model(symbols), model.head(state))
    # an unknown symbol is a step without input
    unknown = torch.tensor([[0, 7, 2], [1, 9, 3]])
    torch.testing.assert_close(model.encode(unknown), model.encode(torch.where(unknown < 5, unknown, 100)))
    assert float((model.encode(unknown) - state).abs().max().detach()) > 1e-4


def test_gru_svm_loss_is_the_sum_of_the_paper() -> None:
    model = GRUSVM(5, 4)
    scores, labels = torch.randn(6, 2), torch.tensor([0, 1, 1, 0, 1, 1])
    y = 2 * F.one_hot(labels, 2) - 1
    want = 0.5 * model.head.weight.square().sum() + 0.5 * (1 - y * scores).clamp(min=0).square().sum()
    torch.testing.assert_close(model.loss(scores, labels), want)
    by_mean = GRUSVM(5, 4, C=0.5 * 6, reduction="mean")
    by_mean.load_state_dict(model.state_dict())
    torch.testing.assert_close(by_mean.loss(scores, labels), want)
    softmax = GRUSVM(5, 4, head="softmax")
    torch.testing.assert_close(softmax.loss(scores, labels), F.cross_entropy(scores, labels))


def test_input_dropout_scales_whole_steps() -> None:
    model = GRUSVM(3, 4, dropout=0.5)
    symbols = torch.zeros(400, 1, dtype=torch.long)
    states = model.encode(symbols)
    assert len(states.detach().unique(dim=0)) == 2  # kept (and doubled) or dropped
    assert len(model.eval().encode(symbols).detach().unique(dim=0)) == 1


def test_cnn_svm_is_the_paper_s_network() -> None:
    model = CNNSVM()
    assert [tuple(p.shape) for p in model.parameters()] == [
        (32, 1, 5, 5), (32,), (64, 32, 5, 5), (64,), (1024, 7 * 7 * 64), (1024,), (10, 1024), (10,),
    ]  # fmt: skip
    scores, labels = torch.randn(4, 10), torch.tensor([3, 0, 9, 9])
    want = l2_svm_loss(scores, labels, over_classes="mean", head_weight=model.head.weight, reg="mean")
    torch.testing.assert_close(model.loss(scores, labels), want)
    assert model.decide(scores, "sign_argmax").tolist() == scores.sign().argmax(1).tolist()


@pytest.mark.parametrize(("size", "channels", "classes"), [(28, 1, 10), (9, 3, 4), (5, 1, 2)])
@pytest.mark.parametrize("options", [{}, {"head": "softmax"}, {"multiclass": "crammer_singer"}])
def test_cnn_svm_trains_at_any_size(size, channels, classes, options) -> None:
    model = CNNSVM(classes, widths=(2, 3, 8), image_size=size, channels=channels, **options)
    loss = model.loss(model(torch.rand(3, channels, size, size)), torch.tensor([0, 1, 1]))
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_bad_input() -> None:
    model, cell = GRUSVM(5, 4), GRUCellResetBefore(3, 4)
    good = torch.tensor([[0, 1]])
    calls = [
        (lambda: model(torch.tensor([[0, 5]])), ArgumentValueError, r"symbols must be in \[0, 5\)"),
        (lambda: model(torch.tensor([[-1, 2]])), ArgumentValueError, "symbols"),
        (lambda: model(good.float()), ArgumentValueError, "symbols must be integers"),
        (lambda: model(good[:, :0]), ArgumentValueError, "T >= 1"),
        (lambda: model([[0, 1]]), ArgumentTypeError, "symbols"),
        (lambda: model(good, torch.zeros(2, 4)), ArgumentValueError, "state"),
        (lambda: cell(torch.ones(2, 4)), ArgumentValueError, "input must have shape"),
        (lambda: cell(torch.ones(2, 3).long()), ArgumentTypeError, "input"),
        (lambda: cell.scan(torch.ones(2, 0, 3)), ArgumentValueError, "length 0"),
        (lambda: cell.load_tensorflow(*(torch.ones(2, 2),) * 4), ArgumentValueError, "gates_kernel"),
        (lambda: GRUCellResetBefore(0, 4), ArgumentValueError, "input_size"),
        (lambda: GRUSVM(hidden_size=2.0), ArgumentTypeError, "hidden_size"),
        (lambda: GRUSVM(cell="lstm"), ArgumentValueError, "cell"),
        (lambda: GRUSVM(head="linear"), ArgumentValueError, "head"),
        (lambda: GRUSVM(dropout=1.0), ArgumentValueError, "dropout"),
        (lambda: CNNSVM(widths=(1, 2)), ArgumentValueError, "widths"),
        (lambda: CNNSVM(widths=(1, 2, 0)), ArgumentValueError, r"widths\[2\]"),
        (lambda: CNNSVM(widths=(2, 2, 4))(torch.rand(2, 1, 27, 28)), ArgumentValueError, "images"),
        (lambda: CNNSVM(head="softmax", widths=(2, 2, 4)).decide(torch.ones(1, 10), "sign_argmax"),
         ArgumentValueError, "rule"),
    ]  # fmt: skip
    for call, error, words in calls:
        with pytest.raises(error, match=words):
            call()


def test_an_empty_batch_passes() -> None:
    model = GRUSVM(5, 4)
    assert model(torch.zeros(0, 3, dtype=torch.long)).shape == (0, 2)
