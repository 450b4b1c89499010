"""Soft Adaptive Policy Optimization: a smooth gate on importance ratios in place of clipping."""

from __future__ import annotations

from typing import Any

from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale
from softgate.lab.policy_study import measure_addition, measure_tabular
from softgate.lab.tiny_grpo import measure_agreement, measure_gsm8k

_OBJECTIVES: dict[str, dict[str, Any]] = {
    "reinforce": {"loss": "reinforce"},
    "grpo": {"loss": "grpo"},
    "dual_clip": {"loss": "grpo", "dual_clip": 3.0},
    "gspo": {"loss": "gspo", "eps_low": 0.03, "eps_high": 0.04},
    "gspo_narrow": {"loss": "gspo"},
    "sapo": {"loss": "sapo"},
}
_TRAINED = ("grpo", "dual_clip", "gspo", "gspo_narrow", "sapo")
_TAUS = (1.05, 1.0, 0.95)
_SEEDS = (0, 1, 2)
#: Probability and standard deviation of the noise on recorded log-probabilities.
_NOISY, _CLEAN = [0.1, 4.0], [0.0, 0.0]


def _tabular(*names: str) -> tuple[Cell, ...]:
    objectives = {name: _OBJECTIVES[name] for name in names}
    return tuple(
        Cell(name, {"objectives": objectives, "mismatch": mismatch}, measure=measure_tabular, seeds=3)
        for name, mismatch in (("table-noisy", _NOISY), ("table-clean", _CLEAN))
    )


def _taus() -> Cell:
    objectives = {f"tau_neg_{tau:g}": {"loss": "sapo", "tau_neg": tau} for tau in _TAUS}
    return Cell("table-tau", {"objectives": objectives, "mismatch": _NOISY}, measure=measure_tabular, seeds=3)


def _addition(name: str, mismatch: list[float], rounds: int, minibatches: int, *names: str, seed: int = 0) -> Cell:
    config = {"objectives": {key: _OBJECTIVES[key] for key in names}, "seed": seed, "mismatch": mismatch,
              "rounds": rounds, "minibatches": minibatches, "lr": 5e-4}  # fmt: skip
    return Cell(name, config, measure=measure_addition, seeds=1)


def _paper_cells() -> tuple[Cell, ...]:
    """Qwen2.5-1.5B on GSM8K with four mini-batches per rollout; one GPU."""
    training = {"learning_rate": 1e-6, "num_generations": 8, "per_device_train_batch_size": 16,
                "gradient_accumulation_steps": 4, "steps_per_generation": 16, "max_completion_length": 512,
                "max_steps": 2000, "bf16": True, "beta": 0.0}  # fmt: skip
    return tuple(
        Cell(f"gsm8k-{name}", {"model": "Qwen/Qwen2.5-1.5B-Instruct", "objective": _OBJECTIVES[name],
                               "training": training}, measure=measure_gsm8k)
        for name in ("grpo", "gspo_narrow", "sapo")
    )  # fmt: skip


def _on_every_seed(relation: str) -> str:
    """The relation with SEED replaced by each of the seeds, all of which must hold."""
    return " and ".join(relation.replace("SEED", f"noisy-{seed}") for seed in _SEEDS)


def _mean(figure: str) -> str:
    return "(" + " + ".join(f'{figure}["noisy-{seed}"]' for seed in _SEEDS) + f") / {len(_SEEDS)}"


PAPER = Paper(
    slug="sapo",
    title="Soft Adaptive Policy Optimization",
    arxiv="2511.20347",
    date="2025-11",
    code="none found; TRL, verl, ms-swift and Liger each have an implementation, and they agree",
    summary=(
        "Reinforcement learning of language models takes several updates from one batch of answers and weighs every "
        "token by its importance ratio. Clipping a ratio (GRPO, per token; GSPO, per sequence) either passes a "
        "gradient or kills it. SAPO multiplies each token's gradient by a smooth bump that is 1 on policy and fades "
        "on both sides, sooner for negative advantages. Few bad tokens then cost neither the run nor their sequence."
    ),
    methods=("policy.sapo_loss", "policy.sapo_gate", "policy.grpo_loss", "policy.gspo_loss"),
    measure=measure_tabular,
    claims=(
        Claim(
            id="same-as-trl",
            statement="In TRL's trainer the loss is that of TRL's own implementation.",
            paper_figure="exact",
            source="TRL 1.16, loss_type='sapo'",
            relation='loss_gap["trl"] < 1e-6 and weight_gap["trl"] < 1e-6',
            scales=("smoke", "laptop"),
            note="six updates of a random Llama, four of them off policy",
        ),
        Claim(
            id="noisy-ratios-tabular",
            statement="Where some recorded ratios are wrong, SAPO learns, GSPO learns less and GRPO collapses.",
            paper_figure="GSPO and GRPO collapse early, SAPO keeps improving (curves; from memory)",
            source="sec. 5, AIME25, HMMT25, BeyondAIME",
            relation='auc_sapo["table-noisy"] >= auc_gspo["table-noisy"] + 0.03 and '
            'auc_sapo["table-noisy"] >= auc_grpo["table-noisy"] + 0.4',
            direction='auc_sapo["table-noisy"] > auc_grpo["table-noisy"]',
            scales=("smoke", "laptop"),
            note="a table of logits; mean reward over training, three seeds; 10 % of the recorded log-probabilities "
            "have normal noise of deviation 4",
        ),
        Claim(
            id="clean-ratios-tabular",
            statement="Where ratios are right, SAPO and GRPO learn alike.",
            paper_figure="on policy both are REINFORCE (exact)",
            source="sec. 3",
            relation='abs(auc_sapo["table-clean"] - auc_grpo["table-clean"]) <= 0.02',
            scales=("smoke", "laptop"),
            note="a table of logits; three seeds",
        ),
        Claim(
            id="noisy-ratios",
            statement="A transformer trained with wrong ratios answers more additions with SAPO than with GSPO.",
            paper_figure="higher Pass@1 than GSPO and GRPO (curves; from memory)",
            source="sec. 5, AIME25, HMMT25, BeyondAIME",
            relation=_on_every_seed('accuracy_sapo["SEED"] >= max(accuracy_gspo["SEED"], accuracy_gspo_narrow["SEED"]) '
                                    "+ 0.05"),
            direction=_on_every_seed('accuracy_sapo["SEED"] > accuracy_gspo["SEED"]'),
            scales=("laptop",),
            note="addition of three-digit numbers, 120 rollouts of 64 prompts with 8 answers, on each of three seeds",
        ),
        Claim(
            id="grpo-collapses",
            statement="GRPO without a bound on negative advantages collapses there.",
            paper_figure="GRPO collapses early (curves; from memory)",
            source="sec. 5",
            relation=_on_every_seed('accuracy_grpo["SEED"] < 0.1'),
            direction=_on_every_seed('accuracy_grpo["SEED"] < accuracy_sapo["SEED"]'),
            scales=("laptop",),
            note="addition, each of three seeds",
        ),
        Claim(
            id="parity-with-dual-clip",
            statement="GRPO with dual clipping, verl's default, does about as well as SAPO: what helps is the bound on "
            "huge ratios with negative advantages.",
            paper_figure="not in the paper",
            source="own comparison",
            relation=f'{_mean("accuracy_sapo")} >= {_mean("accuracy_dual_clip")} - 0.06',
            scales=("laptop",),
            note="parity, no advantage of SAPO",
        ),
        Claim(
            id="large-model",
            statement="On a language model SAPO reaches at least the reward of GSPO and does not collapse.",
            paper_figure="keeps improving where GSPO and GRPO collapse (curves; from memory)",
            source="sec. 5",
            relation='best_reward["gsm8k-sapo"] >= best_reward["gsm8k-gspo_narrow"] and '
            'final_reward["gsm8k-sapo"] >= 0.5 * best_reward["gsm8k-sapo"]',
            scales=("paper",),
            note="Qwen2.5-1.5B on GSM8K in place of Qwen3-30B-A3B",
        ),
    ),
    plots=(
        Plot("tabular", "bars", "auc_*", "Mean reward over training, table of logits", ylabel="reward"),
        Plot("noisy", "lines", "reward_grpo|reward_dual_clip|reward_gspo|reward_gspo_narrow|reward_sapo",
             "Reward with 10 % wrong ratios (seed 0)", "round", "rollout", "reward", cells=("noisy-0",)),
        Plot("reuse", "lines", "reward_grpo|reward_gspo|reward_sapo",
             "Reward with right ratios and eight updates per rollout", "round", "rollout", "reward", cells=("reuse",)),
    ),
    scales={
        "smoke": Scale(
            cells=(*_tabular("grpo", "gspo", "sapo"), Cell("trl", measure=measure_agreement, seeds=1)),
            minutes=0.7,
            note="a table of logits in place of a network; six updates in TRL",
        ),
        "laptop": Scale(
            cells=(
                *_tabular(*_OBJECTIVES),
                _taus(),
                Cell("trl", measure=measure_agreement, seeds=1),
                *(_addition(f"noisy-{seed}", _NOISY, 120, 2, *_TRAINED, seed=seed) for seed in _SEEDS),
                _addition("reuse", _CLEAN, 60, 8, "grpo", "gspo", "sapo"),
            ),
            minutes=7.0,
            note="a transformer with 100,000 weights that adds three-digit numbers; the seeds of its runs are cells",
        ),
        "paper": Scale(
            cells=_paper_cells(),
            minutes=1500.0,
            hardware="1 GPU with 80 GB for a day",
            note="TRL, Qwen2.5-1.5B-Instruct, GSM8K; the time is an estimate, nobody has measured it. For the model of "
            "the paper, on 32 GPUs with verl, see examples/verl/sapo_qwen3_30b.yaml",
        ),
    },
    notes=(
        "The paper gives curves and no tables; its statements are quoted from memory and marked so. The relations were "
        "written before the runs.",
        "The paper blames the routing of experts and asynchronous engines for wrong ratios. Here they are made: 10 % "
        "of the recorded log-probabilities get normal noise of deviation 4, for every objective alike.",
        "The cell reuse is the other side: right ratios and eight noisy updates per rollout. In a pilot GRPO did "
        "better there: its clip leaves alone what brings a drifted ratio back, and SAPO's gate damps it. No relation "
        "is asked.",
        "The cell table-tau varies the temperature of negative advantages; the paper finds 0.95, below that of "
        "positive ones, the least stable. No relation is asked: in a pilot no effect was visible at this scale.",
        "The paper trains Qwen3-30B-A3B with four mini-batches per rollout; the paper scale here is a dense model of "
        "1.5 billion weights. Measured by training reward, not by Pass@1 on AIME.",
    ),
)  # fmt: skip
