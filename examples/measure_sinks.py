"""Measure the attention sink of a model, fit gates into it, train on, and measure again.

    python examples/measure_sinks.py
    python examples/measure_sinks.py --model-dir my-llama --text my.txt --steps 500 --lr 1e-4

At tiny scale and after a few steps hardly anything moves; what the figures mean: docs/gallery, gated attention.
"""

from __future__ import annotations

from typing import Any

from language_model import arguments, load, rows, train

import softgate
from softgate.diagnostics import attention_sink


def report(when: str, model: Any, batch: Any) -> None:
    sink = attention_sink(model.eval(), batch)
    layers = ", ".join(f"{share:.3f}" for share in sink["per_layer"])
    print(f"{when}: first token {sink['first_token_share']:.4f} of the weight (layers: {layers}), ", end="")
    print(f"largest activation {sink['max_activation']:.2f}")


def main() -> None:
    options = arguments(__doc__).parse_args()
    model, text, _ = load(options)
    batch = rows(text, options, 10**6)
    uniform = (sum(1 / i for i in range(1, options.length + 1)) - 1) / (options.length - 1)
    print(f"uniform attention would give the first token {uniform:.4f}")
    report("original", model, batch)
    softgate.swap(model, attention="gated")
    report("gates at 1", model, batch)
    losses = train(model, text, options)
    report(f"after {options.steps} steps (loss {losses[0]:.3f} -> {losses[-1]:.3f})", model, batch)


if __name__ == "__main__":
    main()
