"""Recurrences over long sequences whose intermediate values are never held for more than one segment of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

#: ``(state, sequences, constants) -> (output, new state)`` in plain torch; time is dimension -2 of the sequences.
Step = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, Tensor]]
#: ``(state, sequences, constants) -> (output, states before the first segment and after each)``, all segments at once.
Forward = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, list[Tensor]]]


def in_segments(
    step: Step,
    state: Tensor,
    sequences: Sequence[Tensor],
    constants: Sequence[Tensor] = (),
    *,
    length: int,
    forward: Forward | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply ``step`` to segments of ``length`` tokens, one after the other.

    Forward keeps the inputs and the states at the segments' borders; backward computes each segment again, the last
    one first. Differentiable any number of times, not under ``torch.func`` transforms. ``forward``, which need not be
    differentiable, takes the place of all steps of the forward pass.

    Returns:
        Outputs, concatenated along dimension -2, and the last state.
    """
    output, last = _Segments.apply(step, forward, length, len(sequences), state, *sequences, *constants)
    return output, last


class _Segments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, step: Step, forward: Forward | None, length: int, count: int, state: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        sequences, constants = tensors[:count], tensors[count:]
        run = _steps(step, length) if forward is None else forward
        output, borders = run(state, sequences, constants)
        ctx.step, ctx.length, ctx.count, ctx.borders = step, length, count, borders[1:-1]
        ctx.save_for_backward(state, *tensors)
        return output, borders[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        # whole: where the gradient is to be differentiated itself
        differentiate = _differentiate_whole if torch.is_grad_enabled() else _differentiate_segments
        return (None, None, None, None, *differentiate(ctx, grads))


def _steps(step: Step, length: int) -> Forward:
    """The forward pass one step after the other."""

    def forward(state: Tensor, sequences: Sequence[Tensor], constants: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        outputs, borders = [], [state]
        for pieces in _pieces(sequences, length):
            output, state = step(state, pieces, constants)
            outputs.append(output)
            state = state.clone()  # it may be a view of the states of all tokens, which must not live on
            borders.append(state)
        return torch.cat(outputs, -2), borders

    return forward


def _pieces(sequences: Sequence[Tensor], length: int) -> Iterator[list[Tensor]]:
    total = sequences[0].shape[-2]
    for start in range(0, total, length):
        yield [x.narrow(-2, start, min(length, total - start)) for x in sequences]


def _differentiate_whole(ctx: Any, grads: tuple[Tensor, ...]) -> list[Tensor | None]:
    state, *tensors = ctx.saved_tensors
    sequences, constants = tensors[: ctx.count], tensors[ctx.count :]
    outputs, last = [], state
    for pieces in _pieces(sequences, ctx.length):
        output, last = ctx.step(last, pieces, constants)
        outputs.append(output)
    return _gradients([torch.cat(outputs, -2), last], [state, *tensors], grads, create_graph=True)


def _differentiate_segments(ctx: Any, grads: tuple[Tensor, ...]) -> list[Tensor | None]:
    first, *tensors = ctx.saved_tensors
    count = ctx.count
    needed = ctx.needs_input_grad[4:]
    sequences, constants = tensors[:count], [_leaf(x, need) for x, need in zip(tensors[count:], needed[1 + count :],
                                                                             strict=True)]  # fmt: skip
    cut = list(_pieces(sequences, ctx.length))
    states = [first, *ctx.borders]
    found: list[list[Tensor]] = [[] for _ in sequences]
    totals: list[Tensor | None] = [None for _ in constants]
    grad_output, grad_state = grads
    grad_cut = [g[0] for g in _pieces([grad_output], ctx.length)]
    for index in reversed(range(len(cut))):
        state = _leaf(states[index], True)
        pieces = [_leaf(x, need) for x, need in zip(cut[index], needed[1 : 1 + count], strict=True)]
        with torch.enable_grad():
            output, last = ctx.step(state, pieces, constants)
        got = _gradients([output, last], [state, *pieces, *constants], (grad_cut[index], grad_state))
        grad_state = torch.zeros_like(state) if got[0] is None else got[0]
        for place, (piece, gradient) in enumerate(zip(pieces, got[1 : 1 + count], strict=True)):
            found[place].append(torch.zeros_like(piece) if gradient is None else gradient)
        for place, gradient in enumerate(got[1 + count :]):
            total = totals[place]
            totals[place] = gradient if total is None or gradient is None else total + gradient
    return [grad_state, *(torch.cat(pieces[::-1], -2) for pieces in found), *totals]


def _leaf(x: Tensor, need: bool) -> Tensor:
    return x.detach().requires_grad_(need)


def _gradients(
    outputs: list[Tensor], inputs: list[Tensor], grads: tuple[Tensor, ...], create_graph: bool = False
) -> list[Tensor | None]:
    """Gradients of the inputs that require one, None for the others."""
    pairs = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
    wanted = [x for x in inputs if x.requires_grad]
    got = iter(
        torch.autograd.grad(
            [output for output, _ in pairs], wanted, [grad for _, grad in pairs],
            create_graph=create_graph, allow_unused=True,
        )
    )  # fmt: skip
    return [next(got) if x.requires_grad else None for x in inputs]
