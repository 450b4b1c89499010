"""Multi-query associative recall (MQAR): pairs of keys and values, then some of the keys again, to be answered.

The task of "Zoology" (Arora et al., arXiv 2312.04927), which tells apart token mixers by what their states can hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from softgate._checks import check_number
from softgate.errors import ArgumentValueError, bad_type, bad_value
from softgate.lab import seeds

__all__ = ["IGNORED", "MQAR", "RecallBatch", "mqar"]

#: Label of a position that does not count.
IGNORED = -100


class RecallBatch(NamedTuple):
    """Examples of a recall task.

    Attributes:
        inputs: (N, L) tokens.
        labels: (N, L) answers, -100 where there is no question.
    """

    inputs: Tensor
    labels: Tensor


def mqar(
    num_examples: int,
    seq_len: int,
    num_kv_pairs: int,
    vocab_size: int = 8192,
    power_a: float = 0.01,
    random_non_queries: bool = False,
    seed: int = 0,
) -> RecallBatch:
    """Draw examples of multi-query associative recall.

    An example starts with ``k1 v1 k2 v2 …``: m distinct keys from 1 to V/2 - 1, each followed by its value, distinct
    from V/2 to V - 1. After them every key comes once more, m of the ``space = (L - 2m) // 2`` slots being drawn
    without replacement with probability ∝ a s^(a-1), s = 1, …, space; slot s is position 2m + 2(s - 1). The label of
    that position is the key's value. All other labels are -100, all other tokens the filler 0.

    Args:
        num_examples: N.
        seq_len: L, even.
        num_kv_pairs: m, with 4m <= L.
        vocab_size: V, even.
        power_a: a; small means that questions come early.
        random_non_queries: random tokens in place of the filler.
        seed: of all draws.

    Raises:
        ArgumentTypeError: wrong types.
        ArgumentValueError: an odd length or vocabulary, or too many pairs for either.

    Example:
        >>> batch = mqar(2, 16, 4, vocab_size=32)
        >>> batch.inputs.shape, (batch.labels != -100).sum(1)
        (torch.Size([2, 16]), tensor([4, 4]))
    """
    _check(num_examples, seq_len, num_kv_pairs, vocab_size, random_non_queries)
    check_number("power_a", power_a, low=0.0, low_open=True, high_open=True)
    generator = seeds.generator(seed, "mqar")
    m, half = num_kv_pairs, vocab_size // 2
    keys = 1 + _distinct(num_examples, half - 1, m, generator)
    values = half + _distinct(num_examples, half, m, generator)
    space = (seq_len - 2 * m) // 2
    # Gumbel noise on the log-probabilities: the m largest are m draws without replacement.
    uniform = torch.rand(num_examples, space, generator=generator, dtype=torch.float64)
    log_share = (power_a - 1.0) * torch.arange(1, space + 1, dtype=torch.float64).log()
    slots = (log_share - (-uniform.clamp_min(1e-300).log()).log()).topk(m).indices
    positions = 2 * m + 2 * slots
    inputs = torch.zeros(num_examples, seq_len, dtype=torch.long)
    inputs[:, : 2 * m : 2], inputs[:, 1 : 2 * m : 2] = keys, values
    inputs.scatter_(1, positions, keys)
    labels = torch.full_like(inputs, IGNORED).scatter_(1, positions, values)
    if random_non_queries:
        noise = torch.randint(vocab_size, inputs.shape, generator=generator)
        inputs = torch.where(inputs == 0, noise, inputs)
    return RecallBatch(inputs, labels)


def _distinct(rows: int, choices: int, count: int, generator: torch.Generator) -> Tensor:
    """(rows, count) numbers below ``choices``, distinct within a row, in random order."""
    return torch.rand(rows, choices, generator=generator).topk(count).indices


def _check(num_examples: int, seq_len: int, num_kv_pairs: int, vocab_size: int, random_non_queries: bool) -> None:
    sizes = {"num_examples": num_examples, "seq_len": seq_len, "num_kv_pairs": num_kv_pairs, "vocab_size": vocab_size}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            bad_type(name, size, "an int")
    if num_examples < 0:
        bad_value("num_examples", num_examples, "not negative")
    if vocab_size % 2 or vocab_size < 4:
        bad_value("vocab_size", vocab_size, "an even number of at least 4")
    if seq_len % 2 or seq_len < 4:
        bad_value("seq_len", seq_len, "an even number of at least 4")
    if not 1 <= num_kv_pairs <= min(seq_len // 4, vocab_size // 2 - 1):
        raise ArgumentValueError(
            f"num_kv_pairs must be between 1 and min(seq_len / 4, vocab_size / 2 - 1) = "
            f"{min(seq_len // 4, vocab_size // 2 - 1)}, got {num_kv_pairs}"
        )
    if not isinstance(random_non_queries, bool):
        bad_type("random_non_queries", random_non_queries, "a bool")


@dataclass(frozen=True)
class MQAR:
    """Batches of MQAR as a pure function of a stream name.

    Attributes:
        seed: seed of all batches.
        seq_len: L.
        num_kv_pairs: m.
        vocab_size: V.
        examples: size of the training set, which batches cycle through; None draws new examples for ever.
    """

    seed: int
    seq_len: int
    num_kv_pairs: int
    vocab_size: int = 8192
    examples: int | None = None

    def batch(self, step: int, *, size: int) -> RecallBatch:
        """Training examples of update ``step``; ``examples`` of them are a fixed set in a fixed order."""
        if self.examples is not None:
            step %= max(1, self.examples // size)
        return self.draw("train", step, size=size)

    def draw(self, *stream: int | str, size: int) -> RecallBatch:
        """``size`` examples, the same for the same ``stream``, e.g. ``("test",)``."""
        seed = seeds.derive(self.seed, "mqar", *stream)
        return mqar(size, self.seq_len, self.num_kv_pairs, self.vocab_size, seed=seed)
