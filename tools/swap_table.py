"""Write the table of docs/swap.md: which method can be put into which model, found out by trying."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "swap.md"
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
HEADS = {
    "llama": "Llama", "qwen3": "Qwen3", "qwen3_moe": "Qwen3-MoE", "gpt2": "GPT-2", "bert": "BERT", "vit": "ViT",
    "t5": "T5", "timm": "timm ViT", "torch": "nn.MultiheadAttention",
}  # fmt: skip


def read() -> dict[str, dict[str, bool]]:
    """The table as it is printed: method -> model -> whether it can be put there."""
    block = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.strip().splitlines()]
    models = list(HEADS)
    return {row[0].strip("`"): {m: cell != "no" for m, cell in zip(models, row[1:], strict=True)} for row in lines[2:]}


def rows() -> list[str]:
    """Every method that ``attention=`` and ``normalizer=`` take, once."""
    from softgate.swapping.attention_methods import attention_methods, normalizer_methods

    normalizers = [f"normalizer={name}" for name in normalizer_methods() if name != "softmax"]
    return ["gated", "softmax", *attention_methods(), *normalizers]


def can(row: str, model: str) -> bool:
    """Try to put the method of ``row`` into a tiny ``model``."""
    import softgate
    from softgate.errors import StateError

    place, _, name = row.rpartition("=")
    try:
        softgate.swap(build(model), **{place or "attention": name}, **options(row, model))
    except StateError as error:
        if "cannot be put into" not in str(error):
            raise
        return False
    return True


def build(model: str) -> Any:
    """A tiny random model."""
    sys.path.insert(0, str(ROOT / "tests" / "swapping"))
    import tiny_models
    from torch import nn

    if model == "torch":
        return nn.MultiheadAttention(8, 2)
    return tiny_models.timm_vit() if model == "timm" else tiny_models.build(model)


def options(row: str, model: str) -> dict[str, Any]:
    """What a bare module has to be told: the length it is trained at."""
    from softgate.swapping.attention_methods import LENGTH_OPTIONS

    if model != "torch" or row not in LENGTH_OPTIONS:
        return {}
    return {"attention_options": {LENGTH_OPTIONS[row][0]: 16}}


def main() -> None:
    """Write the table into the page."""
    lines = ["| | " + " | ".join(HEADS.values()) + " |", "|---|" + "---|" * len(HEADS)]
    for row in rows():
        cells = ["exact at first" if row == "gated" else "yes" if can(row, model) else "no" for model in HEADS]
        lines.append(f"| `{row}` | " + " | ".join(cells) + " |")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    page = before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1]
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
