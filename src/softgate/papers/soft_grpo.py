"""SofT-GRPO: Gumbel-reparameterised soft thinking, and reinforcement of its likelihood."""

from __future__ import annotations

from typing import Any

from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale
from softgate.lab.running_sums import measure_running_sums
from softgate.lab.soft_reasoning import measure_reasoning
from softgate.lab.soft_token_checks import measure_identities

#: The pilot of the specification: six digits, four thoughts, 64 prompts x 8 answers, two mini-batches a round.
_SUMS = {"digits": 6, "base_accuracy": 0.3, "problems": 300, "samples": 16, "lr": 3e-4}
#: How each variant thinks, and how its steps are scored.
_VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {"thoughts": "ordinary"},
    "soft": {"thoughts": "soft"},
    "label": {"thoughts": "label"},
    "soft-fast": {"thoughts": "soft", "lr": 1e-3},
    "sum-fast": {"thoughts": "soft", "reduce": "sum", "lr": 1e-3},
}
_REASONING = {"model": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "data": "agentica-org/DeepScaleR-Preview-Dataset",
              "test": "HuggingFaceH4/aime_2024", "end_think": "</think>", "lr": 1e-6, "prompts": 64, "group": 8,
              "minibatches": 2, "max_prompt": 1024, "max_response": 8192, "max_test_response": 32_768, "epochs": 1,
              "beta": 0.001, "samples": 32, "precision": "bf16"}  # fmt: skip


def _sums(rounds: int, *names: str, **settings: Any) -> tuple[Cell, ...]:
    return tuple(Cell(name, {**_SUMS, **_VARIANTS[name], "rounds": rounds, **settings}) for name in names)


def _identities(draws: int) -> Cell:
    return Cell("identities", {"draws": draws}, measure=measure_identities, seeds=1)


def _paper_cells() -> tuple[Cell, ...]:
    return tuple(
        Cell(name, {**_REASONING, "thoughts": _VARIANTS[name]["thoughts"]}, measure=measure_reasoning, seeds=1)
        for name in ("grpo", "soft")
    )


PAPER = Paper(
    slug="soft-grpo",
    title="SofT-GRPO: Surpassing Discrete-Token LLM Reinforcement Learning via Gumbel-Reparameterized Soft-Thinking "
    "Policy Optimization",
    arxiv="2511.06411",
    date="2025-11",
    code="zz1358m/SofT-GRPO-master",
    summary=(
        "A model that thinks in soft tokens feeds back a mixture of the embeddings of its likeliest tokens. That is "
        "deterministic: nothing to explore, no likelihood to reinforce. The paper disturbs the log-probabilities of "
        "the candidates with Gumbel noise before they become weights, recovers the noise at the update, and takes its "
        "density as the likelihood in GRPO. For models of 1.5 to 7 billion parameters it reports slightly better "
        "Pass@1 than GRPO on tokens and clearly better Pass@32."
    ),
    methods=("policy.soft_grpo_loss", "policy.soft_token_log_prob"),
    measure=measure_running_sums,
    claims=(
        Claim(
            id="exact-likelihood",
            statement="The noise of a stored soft token is recovered under the parameters that drew it; K rows of the "
            "output matrix give the log-probability that all of them give; the score has mean 0.",
            paper_figure="exact",
            source="sec. 3, and the identities of the Gumbel distribution",
            relation='round_trip_error["identities"] < 1e-10 and selected_error["identities"] < 1e-10 and '
            'score_z["identities"] < 5 and gumbel_max_z["identities"] < 5',
            scales=("smoke", "laptop"),
        ),
        Claim(
            id="it-learns",
            statement="Reinforcement with the density of the noise makes soft thinking better at the task.",
            paper_figure="3B: 24.96 -> 32.83 % Pass@1 in soft thinking, mean of five benchmarks (from the logs)",
            source="result logs of the authors' repository",
            relation='pass_1["soft"] >= base_pass_1["soft"] + 0.30',
            per_scale={"smoke": 'last_reward["soft"] >= first_reward["soft"] + 0.10'},
            direction='last_reward["soft"] >= first_reward["soft"] + 0.05',
            scales=("smoke", "laptop"),
            note="running sums of six digits with four thoughts; smoke: mean reward of the last ten rounds against "
            "the first ten",
        ),
        Claim(
            id="as-good-as-grpo",
            statement="It is as good as GRPO on ordinary thoughts in the share of right single answers.",
            paper_figure="+0.13 points of Pass@1",
            source="abstract",
            relation='pass_1["soft"] >= pass_1["grpo"] - 0.05',
            scales=("laptop",),
            note="running sums",
        ),
        Claim(
            id="mean-is-stable",
            statement="At a larger learning rate the mean over the candidates' densities, which the code uses, still "
            "learns where their joint density does not.",
            paper_figure="not in the paper (the code has only the mean)",
            source="the authors' code",
            relation='pass_1["soft-fast"] >= pass_1["sum-fast"] + 0.08',
            direction='pass_1["soft-fast"] > pass_1["sum-fast"]',
            scales=("laptop",),
            note="running sums, learning rate 1e-3",
        ),
        Claim(
            id="more-answers",
            statement="With many samples it solves more problems than GRPO on tokens, with single ones as many.",
            paper_figure="+2.19 points of Pass@32 and +0.13 of Pass@1, means over models and benchmarks",
            source="abstract",
            relation='pass_k["soft"] >= pass_k["grpo"] + 0.01 and abs(pass_1["soft"] - pass_1["grpo"]) <= 0.01',
            direction='pass_k["soft"] > pass_k["grpo"]',
            scales=("paper",),
            note="the running sums show the curves, and nothing is asked of them: both are near 1 at 16 samples",
        ),
    ),
    plots=(
        Plot("reward", "lines", "reward", "Right answers while training", "round", "round", "mean reward"),
        Plot("pass_at_k", "lines", "pass_curve", "Problems solved by the first k samples", "k", "k", "pass@k"),
        Plot("pass_1", "bars", "base_pass_1|pass_1", "Pass@1 before and after training", ylabel="pass@1"),
        Plot("gradient_norm", "lines", "gradient_norm", "Norm of the gradient before clipping", "round", "round",
             "norm", log="y"),
    ),
    scales={
        "smoke": Scale(
            cells=(_identities(20_000), *_sums(30, "soft", problems=100)),
            minutes=0.5,
            note="running sums, one seed",
        ),
        "laptop": Scale(
            cells=(_identities(100_000), *_sums(60, *_VARIANTS)),
            seeds=3,
            minutes=6.0,
            note="running sums with three seeds",
        ),
        "paper": Scale(
            cells=_paper_cells(),
            minutes=6000.0,
            hardware="8 GPUs of 80 GB",
            note="a model of 1.5 billion parameters on DeepScaleR through the TRL trainer, evaluated on AIME 2024; the "
            "time is an estimate, nobody has measured it",
        ),
    },
    notes=(
        "Paper text beyond the abstract was not seen: definitions and defaults follow the authors' code, which "
        "averages the log-density over likely candidates and clamps the noise.",
        "A trained soft thinker mixes with a temperature of 0.1, so that its inputs are nearly single tokens. That is "
        "why scoring the strongest candidate as an ordinary token (cell label) works as well.",
        "The base policy of the running sums is stopped at the first check above 30 % right answers; checks come every "
        "5 updates, since the accuracy rises from 0.2 to 0.8 within 20.",
        "In the running sums the answer is drawn from the whole vocabulary for all variants, and no reference model is "
        "used.",
        "The paper scale evaluates 30 problems with 32 samples: the differences that the paper reports are within the "
        "noise of such a test.",
    ),
)  # fmt: skip
