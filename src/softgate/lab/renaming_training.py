"""Teach a frozen language model new names of operations it knows: by prompts of several kinds, and by LoRA."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import StateError
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.low_rank import add_low_rank
from softgate.lab.tasks.renamed_operations import RenamedOperations
from softgate.lab.timing import step_seconds
from softgate.lab.training import TrainConfig, fit
from softgate.models import IAPTConfig, get_iapt_model
from softgate.swapping.attention_interface import load_transformers

__all__ = ["measure_decoding", "measure_renaming"]

_TESTED = 1000
_WARMUP = 50
_CURVE = 40
_EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def measure_renaming(run: CellRun) -> dict[str, Any]:
    """Train a small Llama on named operations, freeze it, and adapt it to new names by every method of the cell.

    The configuration holds ``operations``, ``length``, ``width``, ``layers``, ``heads``; ``pretraining`` and ``steps``
    with their rates ``pretraining_lr`` and ``lr``; ``batch``; ``replicates``, and ``methods``: name -> options of
    :class:`IAPTConfig`, or ``{"lora": rank}``; ``"bilevel"`` as ``activation_training`` alternates two halves of the
    data and then trains the rest once more.

    Returns:
        Exact match on 1000 new prompts, per method: ``accuracy_NAME`` (mean over the replicates), ``worst_NAME``,
        and trained parameters ``parameters_NAME``; loss curves ``loss_NAME`` over ``step``; ``backbone``, the smallest
        exact match of the backbones on the names they know.
    """
    config = run.config
    found: dict[str, list[float]] = {name: [] for name in config["methods"]}
    curves: dict[str, list[list[float]]] = {name: [] for name in config["methods"]}
    figures: dict[str, Any] = {}
    backbones = []
    for replicate in range(config["replicates"]):
        seed = seeds.derive(run.seed, "replicate", replicate)
        task = RenamedOperations(seed, config["operations"], config["length"])
        backbone = _backbone(run, task, seed, f"backbone-{replicate}")
        backbones.append(_exact(backbone, task, renamed=False))
        for name, options in config["methods"].items():
            seeds.seed_everything(seeds.derive(seed, "adapter"))
            model, trained = _adapted(copy.deepcopy(backbone), options)
            losses = _train(run, model, task, options, f"{name}-{replicate}")
            found[name].append(_exact(model, task, renamed=True))
            curves[name].append(losses)
            figures[f"parameters_{name}"] = trained
    for name, values in found.items():
        figures[f"accuracy_{name}"] = sum(values) / len(values)
        figures[f"worst_{name}"] = min(values)
        figures[f"loss_{name}"] = torch.tensor(curves[name]).mean(0).tolist()
    stride = max(1, config["steps"] // _CURVE)
    figures["step"] = [float(step) for step in range(stride, config["steps"] + 1, stride)][: len(losses)]
    return {**figures, "backbone": min(backbones)}


def _llama(vocabulary: int, width: int, layers: int, heads: int, **options: Any) -> Any:
    hf = load_transformers()
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    tokens: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    return hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=vocabulary, intermediate_size=4 * width, **sizes, **tokens,
                                              max_position_embeddings=4096, **options))  # fmt: skip


def _backbone(run: CellRun, task: RenamedOperations, seed: int, name: str) -> nn.Module:
    """A Llama that knows the operations by their old names; the new words have random embeddings."""
    config = run.config
    seeds.seed_everything(seeds.derive(seed, "backbone"))
    model = _llama(task.vocabulary, config["width"], config["layers"], config["heads"])
    # words that differ by little in the residual stream would differ by little in what the generators see
    nn.init.normal_(model.get_input_embeddings().weight)
    fit(
        model,
        _loss,
        TrainConfig(steps=config["pretraining"], lr=config["pretraining_lr"], warmup=_WARMUP),
        batches=lambda step: task.batch("known", step, size=config["batch"], renamed=False),
        run=run,
        name=name,
    )
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[task.new_words].normal_(std=float(rows[: task.new_words.start].std()))
    return model  # type: ignore[no-any-return]


def _adapted(backbone: nn.Module, options: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """The backbone with an untrained adapter, and how many parameters that has."""
    if "lora" in options:
        model = add_low_rank(backbone, options["lora"], options.get("names", ("q_proj", "v_proj")))
        model.to(next(backbone.parameters()).device)
    else:
        model = get_iapt_model(backbone, IAPTConfig(**options))
        model.learn("generator" if options.get("activation_training") == "fixed" else "all")
    return model, sum(p.numel() for p in model.parameters() if p.requires_grad)


def _train(run: CellRun, model: Any, task: RenamedOperations, options: Mapping[str, Any], name: str) -> list[float]:
    """Train the adapter; returns about 40 losses."""
    config = run.config
    schedule = TrainConfig(steps=config["steps"], lr=config["lr"], warmup=_WARMUP)

    def batch(step: int) -> Any:
        return task.batch("new", step, size=config["batch"], renamed=True)

    if options.get("activation_training") == "bilevel":
        _alternate(run, model, schedule, batch, f"{name}-alternating")
    history = fit(model, _loss, schedule, batches=batch, run=run, name=name)
    stride = max(1, config["steps"] // _CURVE)
    return [sum(part) / len(part) for part in _chunks(history["loss"], stride)]


def _alternate(run: CellRun, model: Any, schedule: TrainConfig, batch: Callable[[int], Any], name: str) -> None:
    """First-order bi-level steps: the generators on even batches, the activations on odd ones, two disjoint halves.

    Afterwards the activations stay as they are, and the generators start anew.
    """
    fresh = {key: value.detach().clone() for key, value in model.adapters.named_parameters()}

    def loss(net: Any, pair: tuple[Any, ...]) -> Tensor:
        tokens, labels, step = pair
        net.learn("activation" if int(step[0]) % 2 else "generator")  # what has no gradient is not stepped
        return _loss(net, (tokens, labels))

    def marked(step: int) -> Any:
        tokens, labels = batch(step)
        return tokens, labels, torch.full((len(tokens),), step)

    fit(model, loss, schedule, batches=marked, run=run, name=name)
    with torch.no_grad():
        for key, parameter in model.adapters.named_parameters():
            if ".activation." not in key:
                parameter.copy_(fresh[key])
    model.learn("generator")


def _chunks(values: Sequence[float], size: int) -> list[Sequence[float]]:
    return [values[start : start + size] for start in range(0, len(values) - size + 1, size)]


def _loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
    loss: Tensor = model(pair[0], labels=pair[1], use_cache=False).loss
    return loss


@torch.no_grad()
def _exact(model: nn.Module, task: RenamedOperations, *, renamed: bool) -> float:
    model.eval()
    device = next(model.parameters()).device
    tokens, labels = (part.to(device) for part in task.batch("test", size=_TESTED, renamed=renamed))
    return task.exact(model(tokens, labels=labels, use_cache=False).logits, tokens)


def measure_decoding(run: CellRun) -> dict[str, Any]:
    """Time one decoding step of a Llama with random weights: alone, with prompts, and with un-merged LoRA.

    The configuration holds ``width``, ``layers``, ``heads``, ``vocabulary``, ``batch``, ``context``, ``rank``,
    ``bottleneck`` and ``turns``.

    Returns:
        Steps per second ``plain``, ``iapt`` and ``lora`` (all linear layers).
    """
    config = run.config
    seeds.seed_everything(run.seed)
    device = torch.device(run.device)
    with device:
        plain = _llama(config["vocabulary"], config["width"], config["layers"], config["heads"]).eval()
    figures = {"plain": _decoding_rate(plain, run)}
    wrapped = get_iapt_model(plain, IAPTConfig(bottleneck=config["bottleneck"]))
    figures["iapt"] = _decoding_rate(wrapped, run)
    wrapped.unload()
    lora = add_low_rank(plain, config["rank"], _EVERY_LINEAR).to(device)
    figures["lora"] = _decoding_rate(lora, run)
    return figures


@torch.no_grad()
def _decoding_rate(model: Any, run: CellRun) -> float:
    config = run.config
    tokens = torch.randint(config["vocabulary"], (config["batch"], config["context"]), device=run.device)
    cache = model(tokens, use_cache=True).past_key_values
    if cache is None:
        raise StateError("the model keeps no cache")

    def step() -> None:
        model(tokens[:, -1:], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return 1.0 / step_seconds(step, turns=config["turns"], warm=3, device=run.device).median
