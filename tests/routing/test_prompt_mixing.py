"""The three functions: what the mixture is, where gradients go, what the router is told."""

from __future__ import annotations

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from softgate.routing import hard_prompt_gate_target, mix_text_features, mixture_logits


def _unit(*shape: int) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def test_a_mixture_written_as_a_loop() -> None:
    gate, text = torch.randn(7, 5, dtype=torch.float64), _unit(5, 4, 6)
    found = mix_text_features(gate, text, 3)
    for b in range(7):
        chosen = gate[b].argsort(descending=True)[:3]
        weights = gate[b][chosen].exp() / gate[b][chosen].exp().sum()
        torch.testing.assert_close(found[b], sum(w * text[g] for w, g in zip(weights, chosen, strict=True)))


def test_logits_are_those_of_the_mixture() -> None:
    gate, text, image = torch.randn(7, 5), _unit(5, 4, 6).float(), _unit(7, 6).float()
    for k in range(1, 6):
        wanted = 30 * torch.einsum("bd,bcd->bc", image, mix_text_features(gate, text, k))
        torch.testing.assert_close(mixture_logits(image, text, gate, k, 30.0), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            mixture_logits(image, text, gate, k, torch.tensor(30.0)), wanted, rtol=1e-5, atol=1e-5
        )


def test_all_groups_make_the_full_softmax_and_one_makes_no_difference() -> None:
    gate, text, image = torch.randn(7, 5, dtype=torch.float64), _unit(5, 4, 6), _unit(7, 6)
    wanted = torch.einsum("bg,bd,gcd->bc", gate.softmax(-1), image, text)
    torch.testing.assert_close(mixture_logits(image, text, gate, 5), wanted)
    assert torch.equal(
        mixture_logits(image, text[:1], gate[:, :1], 1), mixture_logits(image, text[:1], gate[:, 1:2], 1)
    )
    torch.testing.assert_close(mixture_logits(image, text[:1], gate[:, :1], 1), image @ text[0].T)


def test_equal_prompts_need_no_router() -> None:
    text, image = _unit(1, 4, 6).expand(5, 4, 6), _unit(7, 6)
    found = mixture_logits(image, text, torch.randn(7, 5, dtype=torch.float64))
    torch.testing.assert_close(found, image @ text[0].T)


def test_the_order_of_the_groups_does_not_matter() -> None:
    gate, text, image = torch.randn(7, 5, dtype=torch.float64), _unit(5, 4, 6), _unit(7, 6)
    order = torch.randperm(5)
    torch.testing.assert_close(mixture_logits(image, text[order], gate[:, order]), mixture_logits(image, text, gate))


def test_only_chosen_groups_get_a_gradient() -> None:
    gate = torch.tensor([[3.0, 1.0, 2.0, 0.0]], requires_grad=True)
    text = _unit(4, 3, 6).float().requires_grad_()
    mixture_logits(_unit(1, 6).float(), text, gate).square().sum().backward()
    assert [bool(g.any()) for g in text.grad] == [True, False, True, False]
    assert gate.grad[0].ne(0).tolist() == [True, False, True, False]


def test_the_mixture_is_not_normalised_again() -> None:
    text = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert mix_text_features(torch.zeros(1, 2), text).norm().item() == torch.tensor(0.5).sqrt().item()


def test_the_target_shares_itself_between_the_nearest_groups() -> None:
    image, prototypes, labels = torch.randn(50, 6), _unit(4, 3, 6).float(), torch.arange(50) % 3
    found = hard_prompt_gate_target(image, prototypes, labels)
    torch.testing.assert_close(found.sum(1), torch.ones(50))
    cosine = torch.einsum("bd,gbd->bg", functional.normalize(image, dim=1), prototypes[:, labels])
    assert torch.equal(found.topk(2).indices.sort().values, cosine.topk(2).indices.sort().values)
    assert (found.topk(2).values.sum(1) > 0.999).all()
    torch.testing.assert_close(hard_prompt_gate_target(7 * image, prototypes, labels), found)
    near = functional.normalize(prototypes[:1] + 0.1 * prototypes, dim=-1)
    assert (hard_prompt_gate_target(image, near, labels) > 0.4).sum(1).eq(2).all()


def test_without_an_increment_the_target_is_the_softmax_of_the_cosines() -> None:
    image, prototypes, labels = _unit(5, 6), _unit(4, 3, 6), torch.arange(5) % 3
    found = hard_prompt_gate_target(image, prototypes, labels, increment=0.0)
    torch.testing.assert_close(found, torch.einsum("bd,gbd->bg", image, prototypes[:, labels]).softmax(-1))


def test_sixteen_bit_features_are_mixed_in_float32() -> None:
    gate, text, image = torch.randn(3, 4).bfloat16(), _unit(4, 2, 6).bfloat16(), _unit(3, 6).bfloat16()
    assert mix_text_features(gate, text).dtype is torch.float32
    wanted = mixture_logits(image.float(), text.float(), gate.float())
    assert torch.equal(mixture_logits(image, text, gate), wanted)


class _Largest(TorchDispatchMode):
    """Numbers in the largest tensor that an operation gave."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(found) if isinstance(t, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return found


def test_logits_never_hold_the_mixture() -> None:
    image, text, gate = torch.randn(40, 64), torch.randn(3, 50, 64), torch.randn(40, 3)
    with _Largest() as mixture:
        mix_text_features(gate, text)
    with _Largest() as logits:
        mixture_logits(image, text, gate)
    assert mixture.numbers == 40 * 50 * 64 and logits.numbers <= text.numel()
