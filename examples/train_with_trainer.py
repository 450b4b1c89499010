"""Fine-tune a swapped model with the Trainer of transformers; kill it at any moment and go on with --resume.

    python examples/train_with_trainer.py --attention gated --loss stablemax
    python examples/train_with_trainer.py --attention gated --loss stablemax --resume

Its checkpoints hold a manifest of the swaps: ``softgate.from_pretrained(checkpoint)`` loads any of them.
"""

from __future__ import annotations

import torch
from language_model import arguments, load
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import softgate


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Consecutive rows of a text."""

    def __init__(self, text: torch.Tensor, length: int) -> None:
        self.rows = text[: len(text) // length * length].view(-1, length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--attention", default="gated")
    parser.add_argument("--loss", help="another loss, such as stablemax")
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    model, text, _ = load(options)
    softgate.swap(model, attention=options.attention, loss=options.loss)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.out),
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            learning_rate=options.lr,
            lr_scheduler_type="constant",
            save_steps=options.save_every,
            logging_steps=options.save_every,
            report_to=[],
            seed=options.seed,
        ),
        train_dataset=Rows(text, options.length),
    )
    trainer.train(resume_from_checkpoint=options.resume)
    again = softgate.from_pretrained(options.out / f"checkpoint-{options.steps}")
    batch = Rows(text, options.length)[0]["input_ids"][None]
    model.eval().cpu()
    difference = float((again(batch).logits - model(batch).logits).detach().abs().max())
    print(f"step {trainer.state.global_step}, loss {trainer.state.log_history[-2]['loss']:.3f}")
    print(f"the checkpoint loads with {options.attention} in it; its logits differ by {difference:.1g}")


if __name__ == "__main__":
    main()
