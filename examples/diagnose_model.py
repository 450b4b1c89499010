"""Look into a model: which heads park their weight on the first token, which features stick out, what would help.

    python examples/diagnose_model.py
    python examples/diagnose_model.py --model-dir my-llama --text my.txt --steps 0

Trains a tiny Llama for a few steps under a monitor, then prints the report; with ``--model-dir`` looks at your model.
"""

from __future__ import annotations

import torch
from language_model import arguments, load, rows
from rich.console import Console

from softgate.diagnostics import TrainingMonitor, report
from softgate.lab.diagnosis import print_report


def main() -> None:
    options = arguments(__doc__).parse_args()
    model, text, _ = load(options)
    monitor = TrainingMonitor(
        model, every=10, log=lambda step, seen: print(f"step {step}: sink {seen['sink_share']:.4f}, "
                                                      f"kurtosis {seen['kurtosis']:.2f}"),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    model.train()
    for step in range(options.steps):
        monitor.step()
        batch = rows(text, options, step)
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = report(model, [{"input_ids": rows(text, options, 10**6 + i)} for i in range(2)])
    print_report(Console(), found, str(options.model_dir or "a tiny Llama"))


if __name__ == "__main__":
    main()
