"""Soft thinking: a step of decoding beside an ordinary one, and scoring soft steps beside the log-softmax they avoid.

    python benchmarks/soft_thinking.py [--seconds S] [--model V,width,layers] [--steps T] [--score N,d,K] [--out DIR]

One thread, float32, candidates in turns. Decoding: a random Llama answers one prompt; ``plain`` is the bare loop of
forward passes with top-k, top-p sampling, ``transformers`` its own generate, ``soft`` thinks in mixtures of five
embeddings all the way; milliseconds are per step. Scoring: N steps of K candidates under new weights, from K rows of
the output matrix (``soft``) and from all V logits (``full``), with V of 1000 and 32000, without and with gradients;
that of the matrix is dense.
Figures go to DIR/benchmark-soft-thinking.json. Smoke: --model 100,16,1 --steps 4 --score 8,16,5.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _timing import CONSOLE, table, write_record
from softgate.integrations import torchvision_cpu
from softgate.lab.timing import interleaved, load_per_core
from softgate.policy import SoftSampling, SoftThinkingGenerator, sample_soft_token

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
VOCABULARIES = (1000, 32_000)
Step = Callable[[], object]


def llama(vocabulary: int, width: int, layers: int) -> Any:
    torchvision_cpu.repair()
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=max(width // 64, 1), bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def plain_loop(model: Any, ids: Tensor, steps: int) -> None:
    """Ordinary tokens, drawn from the five likeliest of 95 % of their mass."""
    mask, cache = torch.ones_like(ids), None
    for _ in range(steps):
        out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, (scores, found) = out.past_key_values, out.logits[:, -1].topk(5, -1)
        p = scores.softmax(-1)
        p = p.masked_fill(p.cumsum(-1) - p >= 0.95, 0.0)
        ids = found.gather(-1, torch.multinomial(p, 1))
        mask = torch.cat((mask, mask.new_ones(len(ids), 1)), 1)


def decoding_steps(vocabulary: int, width: int, layers: int, steps: int) -> dict[str, Step]:
    model = llama(vocabulary, width, layers)
    prompt = torch.randint(3, vocabulary, (1, 16), generator=torch.Generator().manual_seed(0))
    think = SoftThinkingGenerator(
        model, end_think_id=3, eos_id=2, pad_id=0, max_think=steps - 2, min_think=steps - 2, max_answer=1
    )
    options = {"do_sample": True, "top_k": 5, "top_p": 0.95, "max_new_tokens": steps, "min_new_tokens": steps}
    return {
        "soft": lambda: think.generate(prompt),
        "plain": lambda: plain_loop(model, prompt, steps),
        "transformers": lambda: model.generate(prompt, attention_mask=torch.ones_like(prompt), **options),
    }


def scoring_steps(rows: int, width: int, candidates: int, vocabulary: int, gradients: bool) -> dict[str, Step]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator).requires_grad_()
    w = (torch.randn(vocabulary, width, generator=generator) / width**0.5).requires_grad_()
    sampling = SoftSampling(k=candidates)
    token = sample_soft_token((x @ w.t()).detach(), k=candidates, generator=generator)
    ids = token.ids[:, :1]
    found: dict[str, Callable[[], Tensor]] = {
        "soft": lambda: sampling.log_prob(x, w, token).sum(),
        "full": lambda: (x @ w.t()).log_softmax(-1).gather(-1, ids).sum(),
    }
    if gradients:
        return {name: lambda f=f: torch.autograd.grad(f(), (x, w)) for name, f in found.items()}
    return {name: torch.no_grad()(f) for name, f in found.items()}


def measure(steps: dict[str, Step], seconds: float, per: int = 1) -> dict[str, Any]:
    times = interleaved(steps, turns=5, seconds=seconds, most=200)
    found = {name: 1e3 * timing.median / per for name, timing in times.items()}
    return {"ms": found, "ratios": {f"soft / {name}": found["soft"] / found[name] for name in list(found)[1:]}}


def main() -> None:
    def sizes(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(",")))

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="per table")
    parser.add_argument("--model", type=sizes, default=(32_000, 512, 4))
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--score", type=sizes, default=(1024, 512, 5))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sections = {"decode": measure(decoding_steps(*options.model, options.steps), options.seconds, options.steps)}
    sections["decode"] |= {"model": options.model, "steps": options.steps}
    for vocabulary in VOCABULARIES:
        for gradients in (False, True):
            steps = scoring_steps(*options.score, vocabulary, gradients)
            name = f"score_{vocabulary}{'_with_gradients' if gradients else ''}"
            sections[name] = {"shape": options.score, **measure(steps, options.seconds)}
    for name, found in sections.items():
        table(f"{name} (median)", ["candidate", "ms"], list(found["ms"].items()))
        CONSOLE.print({key: round(ratio, 3) for key, ratio in found["ratios"].items()})
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    write_record(options.out / "benchmark-soft-thinking.json", sections)


if __name__ == "__main__":
    main()
