"""Reasoning with soft thoughts at full size: a pretrained model, checkable mathematics, the TRL trainer."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from softgate.errors import MissingExtraError
from softgate.lab.cell import CellRun
from softgate.policy import SoftSampling, SoftThinkingGenerator, soft_grpo_loss

__all__ = ["boxed_answer", "measure_reasoning"]

#: GRPO on ordinary tokens is evaluated as its authors do.
_DISCRETE = {"temperature": 0.6, "top_k": 30, "top_p": 0.95}


def boxed_answer(text: str) -> str | None:
    r"""What the last ``\boxed{...}`` of a response holds, without spaces; None if there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    content: list[str] = []
    for character in text[start + len("\\boxed") :]:
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return re.sub(r"\s+", "", "".join(content[1:]))
        content.append(character)
    return None


def measure_reasoning(run: CellRun) -> Mapping[str, float | Sequence[float]]:
    """Train with GRPO on ordinary or soft thoughts, then count problems solved by the first k samples.

    Returns:
        ``pass_curve`` over k (its first entry is the mean over all samples), ``pass_1``, ``pass_k`` and the curve of
        training rewards.
    """
    try:
        datasets: Any = importlib.import_module("datasets")
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtraError("trl and datasets", "rl", "the paper scale of soft-grpo") from error
    config = run.config
    tokenizer = transformers.AutoTokenizer.from_pretrained(config["model"], padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(config["model"]).to(run.device)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    train = _problems(datasets.load_dataset(config["data"], split="train"), tokenizer, config["max_prompt"])
    test = _problems(datasets.load_dataset(config["test"], split="train"), tokenizer, config["max_prompt"])
    trainer = _trainer(run, model, tokenizer, train)
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    curve = _pass_curve(run, _responder(run, model, tokenizer), test)
    return {
        "k": [float(k) for k in range(1, len(curve) + 1)],
        "pass_curve": curve,
        "pass_1": curve[0],
        "pass_k": curve[-1],
        "round": [float(step) for step in range(1, len(rewards) + 1)],
        "reward": rewards,
    }


def _problems(rows: Any, tokenizer: Any, longest: int) -> Any:
    """Prompts and answers; prompts beyond the longest are left out."""

    def prepare(row: dict[str, Any]) -> dict[str, str]:
        question = {"role": "user", "content": row["problem"] + "\nPut the final answer within \\boxed{}."}
        prompt = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
        return {"prompt": prompt, "answer": str(row["answer"])}

    ready = rows.map(prepare, remove_columns=rows.column_names)
    return ready.filter(lambda row: len(tokenizer(row["prompt"])["input_ids"]) <= longest)


def _rewards(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    pairs = zip(completions, answer, strict=True)
    return [float(boxed_answer(text) == re.sub(r"\s+", "", right)) for text, right in pairs]


def _trainer(run: CellRun, model: Any, tokenizer: Any, train: Any) -> Any:
    """One rollout of all prompts for ``minibatches`` updates, every row accumulated on its own."""
    from trl.trainer.grpo_config import GRPOConfig

    from softgate.integrations.trl import SoftGateGRPOTrainer
    from softgate.integrations.trl.soft_thinking import SoftThinkingGRPOTrainer

    config = run.config
    rows = config["prompts"] * config["group"] // int(config.get("processes", 1))
    arguments = GRPOConfig(
        output_dir=str(run.folder / "trainer"), seed=run.seed, learning_rate=config["lr"], beta=config["beta"],
        per_device_train_batch_size=1, num_generations=config["group"], steps_per_generation=rows,
        gradient_accumulation_steps=rows // config["minibatches"], num_train_epochs=config["epochs"],
        max_completion_length=config["max_response"], lr_scheduler_type="constant", logging_steps=1,
        bf16=config["precision"] == "bf16", use_cpu=run.device == "cpu", report_to="none", save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    common = {"model": model, "reward_funcs": _rewards, "args": arguments, "train_dataset": train,
              "processing_class": tokenizer, "policy_loss": soft_grpo_loss}  # fmt: skip
    if config["thoughts"] == "ordinary":
        return SoftGateGRPOTrainer(**common)
    end, longest = tokenizer.convert_tokens_to_ids(config["end_think"]), config["max_response"]
    return SoftThinkingGRPOTrainer(**common, end_think_id=end, max_think=longest - longest // 8)


def _responder(run: CellRun, model: Any, tokenizer: Any) -> Callable[[str], list[str]]:
    """Function of a prompt that gives as many responses as there are samples."""
    config = run.config
    longest, count = config["max_test_response"], config["samples"]
    source = torch.Generator(device=model.device).manual_seed(run.seed)

    def respond(prompt: str) -> list[str]:
        ids = tokenizer([prompt] * count, return_tensors="pt")["input_ids"].to(model.device)
        if config["thoughts"] == "ordinary":
            given = model.generate(ids, do_sample=True, max_new_tokens=longest, **_DISCRETE)[:, ids.shape[1] :]
        else:
            thinker = SoftThinkingGenerator(
                model, tokenizer.convert_tokens_to_ids(config["end_think"]), tokenizer.eos_token_id,
                tokenizer.pad_token_id, longest - longest // 8, longest // 8 - 1, sampling=SoftSampling(),
            )  # fmt: skip
            given = thinker.generate(ids, generator=source).ids
        return list(tokenizer.batch_decode(given, skip_special_tokens=True))

    return respond


def _pass_curve(run: CellRun, respond: Callable[[str], list[str]], test: Any) -> list[float]:
    solved = []
    for place, row in enumerate(test):
        texts = respond(row["prompt"])
        solved.append(_rewards(texts, [row["answer"]] * len(texts)))
        run.log(place + 1, len(test), right=sum(solved[-1]))
    table = torch.tensor(solved)
    return [float(table.mean()), *table.cummax(1).values.mean(0)[1:].tolist()]
