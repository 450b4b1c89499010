"""Every example runs from the command line at its tiny default."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Runner:
    """Runs a script as ``python examples/NAME OPTIONS`` would, in this process (importing torch takes seconds)."""

    def __init__(self, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self.patch, self.capture = patch, capture

    def __call__(self, name: str, *options: str) -> str:
        self.patch.setattr(sys, "argv", [name, *options])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return self.capture.readouterr().out


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Runner(monkeypatch, capsys)


pytestmark = pytest.mark.filterwarnings("ignore")  # what a Trainer warns about is not ours


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    scripts = {path.name for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    assert {name for name in scripts if f'"{name}"' not in text} == set()


def test_train_gpt(run: Runner, tmp_path: Path) -> None:
    out = run("train_gpt.py", "--steps", "4", "--layers", "1", "--width", "16", "--folder", str(tmp_path))
    assert "bits per byte" in out


def test_extreme_classification(run: Runner) -> None:
    out = run("extreme_classification.py", "--steps", "200")
    right, chance = (float(out.split(f"{word} ")[1].split(",")[0]) for word in ("right", "chance"))
    assert right > 20 * chance


@pytest.mark.parametrize(
    "options", [("--attention", "gated", "--loss", "stablemax"), ("--attention", "sigmoid")], ids=lambda o: o[1]
)
def test_swap_llama(run: Runner, options: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    out = run("swap_llama.py", *options, "--steps", "6", "--out", str(tmp_path))
    assert ("move by 0 before" in out) == ("gated" in options)
    first, last = (
        float(part.split()[-1 if i == 0 else 0]) for i, part in enumerate(out.split("loss ")[1].split(" -> "))
    )
    assert last < first
    assert "it writes" in out and (tmp_path / "softgate.json").is_file()


def test_train_with_trainer_resumes(run: Runner, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    common = ("--save-every", "2", "--out", str(tmp_path), "--batch", "4")
    assert "step 2," in run("train_with_trainer.py", *common, "--steps", "2")
    out = run("train_with_trainer.py", *common, "--steps", "4", "--resume")
    assert "step 4," in out and "differ by 0" in out


def test_measure_sinks(run: Runner) -> None:
    pytest.importorskip("transformers")
    lines = run("measure_sinks.py", "--steps", "3").splitlines()
    assert [line.split(":")[0] for line in lines[1:3]] == ["original", "gates at 1"]
    assert lines[1].removeprefix("original") == lines[2].removeprefix("gates at 1")


def test_diagnose_model(run: Runner) -> None:
    pytest.importorskip("transformers")
    out = run("diagnose_model.py", "--steps", "11")
    assert [line.split(":")[0] for line in out.splitlines()[:2]] == ["step 0", "step 10"]
    assert "0.self_attn" in out and "lm_head" in out and "LlamaForCausalLM" in out


def test_svm_head(run: Runner) -> None:
    lines = run("svm_head.py", "--steps", "60").splitlines()
    assert [line.split(":")[0] for line in lines] == ["softmax", "one-vs-rest", "Crammer-Singer"]
    scores = [float(line.split("largest score ")[1].split(",")[0]) for line in lines]
    signs = [float(line.split("sign of the scores ")[1].split(",")[0]) for line in lines[1:2]]
    assert min(scores) > 0.8 and signs[0] < scores[1]


def test_noisy_labels(run: Runner) -> None:
    out = run("noisy_labels.py", "--epochs", "6", "--width", "64", "--tau", "1", "2")
    assert "of them wrong" in out
    first, second = (float(line.split("accuracy ")[1].split(",")[0]) for line in out.splitlines()[1:])
    assert first > 0.5 and second > 0.3 and "confidence" not in out.splitlines()[2]


def test_fourier_head(run: Runner) -> None:
    lines = run("fourier_head.py", "--steps", "150").splitlines()
    linear, fourier = (line for line in lines if "nats" in line)
    assert linear.startswith("linear") and fourier.startswith("fourier")
    assert float(fourier.split("smoothness ")[1].split()[0]) < float(linear.split("smoothness ")[1].split()[0])
    low, middle, high = (float(part) for part in lines[-1].split(": ")[1].split(", "))
    assert -1 <= low < middle < high <= 1


def test_fused_loss(run: Runner) -> None:
    first, second, third = run("fused_loss.py", "--steps", "12").splitlines()
    assert first.split()[1].rstrip(",") == first.split()[4].rstrip(",") and first.endswith("logits None")
    start, end = (float(part.split()[-1 if i == 0 else 0]) for i, part in enumerate(second.split(" -> ")))
    assert end < start
    assert third.endswith("(16, 16, 64)")


@pytest.mark.slow
def test_train_moe_on_two_processes() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(EXAMPLES / "train_moe.py"), "--device", "cpu", "--steps", "12", "--ep", "2"]
    done = subprocess.run([*command, *script], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    bits = [float(line.split(": ")[1].split()[0]) for line in done.stdout.splitlines()]
    assert len(bits) >= 6 and bits[-1] < bits[0]


def test_mixture_regression(run: Runner) -> None:
    pytest.importorskip("sklearn")
    out = run("mixture_regression.py")
    assert "switches near x = 0.3" in out and "hard gate: boundary 0.3" in out
    assert "activation none: temperature not identified" in out and "activation tanh: all parameters" in out


def test_preference_noise(run: Runner) -> None:
    first, *lines = run("preference_noise.py", "--scenario", "heavy-0", "--steps", "150").splitlines()
    assert first.startswith("heavy-0: ") and [line.split(":")[0] for line in lines] == ["dpo", "raw", "kde"]
    assert all(float(line.split("candidate in ")[1].split()[0]) > 0.4 for line in lines)  # chance is 0.25


def test_crowded_boxes(run: Runner) -> None:
    hard, soft, coco, step = run("crowded_boxes.py").splitlines()
    assert int(hard.split(": ")[1].split()[0]) < int(soft.split(": ")[1].split()[0])
    assert coco.startswith("for COCO: score 0.")
    before, after = (float(part.split()[0]) for part in step.removeprefix("sum of final scores ").split(" -> "))
    assert after > before


def test_count_crowd(run: Runner) -> None:
    first, *lines = run("count_crowd.py", "--images", "24", "--steps", "40", "--width", "4").splitlines()
    assert first.startswith("24 training and 12 test images")
    assert [line.split(":")[0] for line in lines] == ["average", "hmode"]
    heads = float(first.split(", ")[1].split()[0])
    assert all(float(line.split("off by ")[1].split()[0]) < heads for line in lines)
    shares = [float(share) for share in lines[1].split("scales ")[1].split(", ")]
    assert len(shares) == 3 and abs(sum(shares) - 1) < 0.02


def test_count_crowd_in_photographs(run: Runner, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for index in range(3):
        for folder in ("images", "points"):
            (tmp_path / folder).mkdir(exist_ok=True)
        image.new("RGB", (48, 48), (40 * index, 0, 0)).save(tmp_path / "images" / f"{index}.png")
        (tmp_path / "points" / f"{index}.json").write_text("[[3.0, 4.0], [40.0, 41.5]]")
    out = run("count_crowd.py", "--folder", str(tmp_path), "--crop", "48", "--steps", "2", "--merge", "hmode")
    assert out.startswith("2 training and 1 test images, 2.0 heads") and "hmode: off by" in out


def test_early_exit(run: Runner) -> None:
    first, *lines = run("early_exit.py", "--samples", "800", "--lams", "0", "3", "--steps", "200").splitlines()
    whole = float(first.split("accuracy ")[1].split()[0])
    costs = [float(line.split("cost ")[1].split(",")[0]) for line in lines]
    right = [float(line.split("accuracy ")[1].split()[0]) for line in lines]
    assert 0.0 < costs[1] < costs[0] <= 1.0 and whole - 0.1 < right[0] and right[1] > 0.3  # chance is 0.2
    assert all(float(line.split("hold ")[1]) > 0.85 for line in lines)


def test_dynamic_filters(run: Runner) -> None:
    out = run(
        "dynamic_filters.py", "--samples", "600", "--epochs", "3", "--steps", "80", "--width", "8", "--save", "0.5"
    )
    first, line = out.splitlines()
    whole = float(first.split("accuracy ")[1])
    promised, saved = (float(line.split(f"{word} ")[1].split(",")[0]) for word in ("save", "saves"))
    assert promised >= 0.5 and abs(saved - promised) < 0.2
    assert float(line.split("accuracy ")[1].split(",")[0]) > max(0.4, whole - 0.3)  # chance is 0.17


def test_train_policy(run: Runner) -> None:
    base, grpo, sapo = run("train_policy.py", "--rounds", "4").splitlines()
    assert base.startswith("base: accuracy") and grpo.startswith("grpo: reward")
    assert 0 <= float(sapo.split()[-1]) <= 1 and sapo.startswith("sapo: reward")


def test_soft_thinking(run: Runner) -> None:
    pytest.importorskip("trl")
    lines = run("soft_thinking.py", "--steps", "4").splitlines()
    summary = next(place for place, line in enumerate(lines) if line.startswith("right answers: "))
    assert [line.split(":")[0] for line in lines[summary + 1 :]] == ["red", "green", "blue", "white"]
    assert any("%)" in line for line in lines[summary + 1 :])


def test_instruction_prompts(run: Runner, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    lines = run("instruction_prompts.py", "--out", str(tmp_path)).splitlines()
    undecided, up, down = (float(line.split("loss ")[1]) for line in lines if "loss" in line)
    assert max(up, down) < undecided
    last = [line.split(": ")[1].split(" -> ") for line in lines[-2:]]
    assert last[0][0] == last[1][0] and last[0][1] != last[1][1]  # one question, two tasks
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_in_context_regression(run: Runner) -> None:
    lines = run("in_context_regression.py", "--steps", "400", "--features", "2", "--points", "10").splitlines()
    assert len(lines[0].split(",")) == 4 and "positive" in lines[2] + lines[3] and "negative" in lines[2] + lines[3]
    layer, descent, ridge = (float(part.split()[-1]) for part in lines[-1].split(","))
    assert ridge < layer < 1.2 * descent


def test_learn_prompts(run: Runner, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    lines = run("learn_prompts.py", "--steps", "30", "--out", str(tmp_path / "prompts")).splitlines()
    first, last = (
        float(part.split()[-1 if i == 0 else 0].rstrip(",")) for i, part in enumerate(lines[0].split(" -> "))
    )
    assert last < first
    assert sum(int(line.split("%")[0]) for line in lines[1:4]) in range(98, 103)
    assert lines[4].endswith("differ by 0") and "(32, 5) logits" in lines[5]


def test_router_balance(run: Runner, tmp_path: Path) -> None:
    picture = tmp_path / "balance.svg"
    out = run("router_balance.py", "--steps", "60", "--tokens", "256", "--rate", "0.02", "--plot", str(picture))
    lines = {line.split(":")[0]: line for line in out.splitlines() if ": at the end" in line}
    last = {name: float(line.split("end ")[1].split(",")[0]) for name, line in lines.items()}
    assert last["bias"] < 0.5 * last["none"] and last["loss"] < last["none"]
    loads = [float(share) for share in lines["bias"].split("cent ")[1].split()]
    assert len(loads) == 8 and loads == sorted(loads, reverse=True) and abs(sum(loads) - 100) <= 4
    assert picture.read_text(encoding="utf-8").startswith("<svg")


def test_learn_activation(run: Runner) -> None:
    pytest.importorskip("sklearn")
    out = run("learn_activation.py")
    assert "epoch 1" in out and out.count("eps ") == 2
    assert all(float(line.split("eps ")[1].split(",")[0]) != 0.01 for line in out.splitlines() if "eps " in line)


def test_drifting_experts(run: Runner) -> None:
    hedge, optimistic, *gaps = run("drifting_experts.py", "--rounds", "400").splitlines()
    loss, best = (float(hedge.split(word)[1].split(",")[0]) for word in ("mean loss ", "best expert "))
    assert float(optimistic.split("mean loss ")[1].split(",")[0]) < min(loss, best)
    assert float(gaps[1].split()[-7]) < 0.1 * float(gaps[0].split()[-7])


def test_smooth_matrix_game(run: Runner) -> None:
    game, regression = run("smooth_matrix_game.py", "--strategies", "6", "--smoothing", "0.05").splitlines()
    low, high = (float(part.split()[0]) for part in game.split("between ")[1].split(" and "))
    assert low <= high < low + 0.3  # the gap of the two players, of the size of the smoothing
    first, last = (float(part.split()[-1 if i == 0 else 0]) for i, part in enumerate(regression.split(" -> ")))
    assert last < 0.2 * first


def test_certify_network(run: Runner) -> None:
    pytest.importorskip("sklearn")
    bounds, accuracy, *shares = run("certify_network.py", "--steps", "150", "--width", "8").splitlines()
    lower, upper, product = (
        float(bounds.split(word)[1].split(",")[0].split(";")[0]) for word in ("least ", "most ", "norms ")
    )
    assert lower <= upper < product and bounds.endswith("holds: True")
    assert float(accuracy.split()[1]) > 0.6 and len(shares) == 3
    ours, theirs = zip(*((float(s.split(": ")[1].split(",")[0]), float(s.split()[-1])) for s in shares), strict=True)
    assert list(ours) == sorted(ours, reverse=True) and all(a >= b for a, b in zip(ours, theirs, strict=True))


def test_restore_image(run: Runner) -> None:
    pytest.importorskip("sklearn")
    out = run("restore_image.py", "--steps", "20")
    before, after = (float(part.split(" dB")[0].split()[-1]) for part in out.split(" before,"))
    assert out.startswith("noise") and after > before


def test_information_plane(run: Runner, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    out = run("information_plane.py", "--epochs", "2", "--plot", str(tmp_path / "plane.svg"))
    assert "adaptive noise" in out and "akde, variance 0.001" in out and (tmp_path / "plane.svg").is_file()


def test_tune_dropout(run: Runner, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    out = run("tune_dropout.py", "--steps", "60", "--schedule", str(tmp_path / "rates.csv"))
    assert "plain layers: ['1', '4']" in out and float(out.split("logits ")[1]) < 1e-4
    assert len((tmp_path / "rates.csv").read_text().splitlines()) == 7


def test_spiking_images(run: Runner) -> None:
    pytest.importorskip("sklearn")
    out = run("spiking_images.py", "--steps", "25", "--width", "16")
    losses = [float(line.split("loss ")[1]) for line in out.splitlines() if line.startswith("step")]
    assert losses[-1] < losses[0]
    assert "embeds.0.proj.conv: real numbers, 1,152 of 1,152 operations" in out and "fires" in out
