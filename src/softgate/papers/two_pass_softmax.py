"""The Two-Pass Softmax Algorithm (Dukhan, Ablavatski 2020): softmax of long rows without a pass for the maximum."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softgate import native
from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale
from softgate.lab.timing import bandwidth_candidates, interleaved
from softgate.normalizers import softmax
from softgate.normalizers.two_pass.kernel import SOFTMAX, launch

if TYPE_CHECKING:
    from softgate.lab.cell import CellRun
    from softgate.lab.paper import Figures

#: Names of the figures -> algorithms of :func:`softgate.normalizers.softmax`.
ALGORITHMS = {
    "two_pass": "two_pass",
    "recompute": "three_pass_recompute",
    "reload": "three_pass_reload",
    "online": "online",
}
#: Lengths around every vector width and block of the kernels.
LENGTHS = (1, 7, 8, 15, 16, 17, 1039, 131072)


def rivals(x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    """Softmax of a row by torch, by oneDNN (torch's mkldnn layout) and by scipy, as far as they are there."""
    found: dict[str, Callable[[], object]] = {"torch": lambda: torch.softmax(x, -1, out=y)}
    if torch.backends.mkldnn.is_available():
        blocked = x.to_mkldnn()
        found["onednn"] = lambda: torch.softmax(blocked, -1)
    with suppress(ImportError):
        from scipy.special import softmax as scipy_softmax

        array = x.numpy()
        found["scipy"] = lambda: scipy_softmax(array, axis=-1)
    return found


def measure_accuracy(run: CellRun) -> Figures:
    """Largest error against float64 over all algorithms, lengths and instruction sets of this machine."""
    generator = torch.Generator().manual_seed(run.seed)
    relative = sums = 0.0
    for length in LENGTHS:
        x = 5 * torch.randn(2, length, generator=generator)
        truth = x.double().softmax(-1)
        for isa in native.info()["isas"]:
            with native.use_isa(isa):
                for algorithm in ALGORITHMS.values():
                    y = softmax(x, algorithm=algorithm).double()
                    relative = max(relative, float(((y - truth).abs() / truth).max()))
                    sums = max(sums, float((y.sum(-1) - 1).abs().max()))
    return {"error": relative, "sum_error": sums}


def measure_times(run: CellRun) -> Figures:
    """Nanoseconds per element of every algorithm and rival on one row, in interleaved turns."""
    x, y = _row(run, 2 ** int(run.config["log2"]))
    return _times(run, x, y, with_rivals=True)


def measure_sweep(run: CellRun) -> Figures:
    """Times over lengths 2^a … 2^b, the gain of two passes beyond the last-level cache, and the bandwidth used."""
    if run.config["isa"] not in native.info()["isas"]:
        return {}
    low, high = run.config["log2"]
    curves: dict[str, list[float]] = {"log2_n": []}
    for step, log2 in enumerate(range(low, high + 1)):
        x, y = _row(run, 2**log2)
        figures = _times(run, x, y, with_rivals=False)
        curves["log2_n"].append(log2)
        for name, value in figures.items():
            curves.setdefault(name, []).append(value)
        run.log(step + 1, high - low + 1, gain=figures["recompute"] / figures["two_pass"])
    return {**curves, **_conclusions(curves)}


def _row(run: CellRun, n: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, generator=torch.Generator().manual_seed(run.seed))
    return x, torch.zeros_like(x)


def _times(run: CellRun, x: Tensor, y: Tensor, *, with_rivals: bool) -> dict[str, float]:
    """Nanoseconds per element: the fastest of at least seven turns."""
    threads = run.threads if run.config.get("threads") == "all" else 1
    torch.set_num_threads(threads)
    candidates: dict[str, Callable[[], object]] = {
        name: lambda plan=native.ALGORITHMS[algorithm]: launch(SOFTMAX, x, -1, plan, False, threads, y)  # type: ignore[misc]
        for name, algorithm in ALGORITHMS.items()
    }
    candidates |= rivals(x, y) if with_rivals else {"torch": lambda: torch.softmax(x, -1, out=y)}
    candidates |= bandwidth_candidates(x.data_ptr(), y.data_ptr(), x.numel())
    with native.use_isa(run.config.get("isa") or native.info()["best_isa"]):
        native.kernels().set_streaming(run.config.get("streaming", -1))
        try:
            timings = interleaved(candidates, turns=7, seconds=float(run.config["seconds"]), most=200)
        finally:
            native.kernels().set_streaming(-1)
    return {name: 1e9 * timing.best / x.numel() for name, timing in timings.items()}


def _conclusions(curves: dict[str, list[float]]) -> dict[str, float]:
    """What the claims are about: the regions beyond the last-level cache and inside the second level."""
    info = native.info()
    sizes = [4 * 2**log2 for log2 in curves["log2_n"]]
    # input and output together no longer leave anything of the row in the cache
    outside = [i for i, size in enumerate(sizes) if size >= 2 * info["l3"]]
    inside = [i for i, size in enumerate(sizes) if 16384 <= size <= info["l2"] // 2]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    figures: dict[str, float] = {}
    if inside:
        figures |= {f"{name}_in_l2": mean([curves[name][i] for i in inside]) for name in ALGORITHMS}
    if outside:
        ratios = [curves["recompute"][i] / curves["two_pass"][i] for i in outside]
        floor = [curves["read"][i] + curves["nt_copy"][i] for i in outside]
        figures |= {
            "gain": mean(ratios),
            "largest_gain": max(ratios),
            "floor_ratio": mean([curves["two_pass"][i] / f for i, f in zip(outside, floor, strict=True)]),
            "gigabytes_per_second": mean([12 / curves["two_pass"][i] for i in outside]),
        }
    return figures


def _sweep(name: str, low: int, high: int, seconds: float, **config: Any) -> Cell:
    return Cell(name, {"log2": (low, high), "seconds": seconds, **config}, measure=measure_sweep)


_ACCURACY = Cell("accuracy", measure=measure_accuracy)
_ONE_THREAD = "one thread, float32, preallocated output, fastest of interleaved turns"

PAPER = Paper(
    slug="two-pass-softmax",
    title="The Two-Pass Softmax Algorithm",
    arxiv="2001.04438",
    date="2020-01",
    summary=(
        "A safe softmax reads its input three times: for the maximum, for the sum and for the result. Out of cache "
        "every one of these passes costs memory bandwidth. If each exponential is kept as a pair (mantissa, exponent) "
        "of floats it cannot overflow, the maximum is not needed, and two passes are enough."
    ),
    claims=(
        Claim(
            id="exact",
            statement="Two passes with (mantissa, exponent) pairs give the softmax to float32 rounding.",
            paper_figure="an exact softmax",
            source="section 3",
            relation='error["accuracy"] <= 4e-6 and sum_error["accuracy"] <= 1e-6',
        ),
        Claim(
            id="beats-three-passes",
            statement="Out of cache two passes are faster than three passes that recompute the exponentials.",
            paper_figure="up to 28 % (AVX-512, Skylake-X)",
            source="abstract",
            relation='gain["avx512"] >= 1.10',
            direction='gain["avx512"] > 1.0',
            scales=("laptop", "paper"),
            per_scale={"paper": 'largest_gain["avx512"] >= 1.28'},
            timing=True,
            note=_ONE_THREAD,
        ),
        Claim(
            id="beats-three-passes-avx2",
            statement="The same with AVX2.",
            paper_figure="up to 18 % (AVX2, Skylake-X)",
            source="abstract",
            relation='gain["avx2"] >= 1.10',
            direction='gain["avx2"] > 1.0',
            scales=("laptop", "paper"),
            per_scale={"paper": 'largest_gain["avx2"] >= 1.18'},
            timing=True,
            note=_ONE_THREAD,
        ),
        Claim(
            id="beats-three-passes-once",
            statement="At 2^24 entries two passes take at most 0.95 of the time of three recomputing passes.",
            paper_figure="up to 28 %",
            source="abstract",
            relation='two_pass["n24"] <= 0.95 * recompute["n24"]',
            direction='two_pass["n24"] < recompute["n24"]',
            scales=("smoke",),
            timing=True,
            note=_ONE_THREAD,
        ),
        Claim(
            id="beats-torch",
            statement="At 2^24 entries every native algorithm takes at most 0.8 of the time of torch.softmax.",
            paper_figure="not in the paper",
            source="this library's own figure",
            relation='max(two_pass["n24"], recompute["n24"], reload["n24"], online["n24"]) <= 0.8 * torch["n24"]',
            direction='two_pass["n24"] < torch["n24"]',
            scales=("smoke",),
            timing=True,
            note=_ONE_THREAD,
        ),
        Claim(
            id="reload-in-cache",
            statement="In the second-level cache the form that computes each exponential once is the fastest.",
            paper_figure="three passes with reloading win in cache",
            source="figures by array size",
            relation='reload_in_l2["avx512"] < min(two_pass_in_l2["avx512"], recompute_in_l2["avx512"])',
            scales=("laptop", "paper"),
            timing=True,
        ),
        Claim(
            id="bandwidth",
            statement="Out of cache two passes run within 25 % of the time to read the row and copy it.",
            paper_figure="memory traffic of 3N floats",
            source="section 3, traffic of the algorithms",
            relation='floor_ratio["avx512"] <= 1.25',
            direction='floor_ratio["avx512"] <= 1.6',
            scales=("laptop", "paper"),
            timing=True,
            note="the floor is measured in the same turns: a streaming read plus a non-temporal copy",
        ),
    ),
    scales={
        "smoke": Scale(
            cells=(
                _ACCURACY,
                Cell("n17", {"log2": 17, "seconds": 2}, measure=measure_times),
                Cell("n24", {"log2": 24, "seconds": 10}, measure=measure_times),
            ),
            minutes=1,
            exclusive=True,
        ),
        "laptop": Scale(
            cells=(
                _ACCURACY,
                _sweep("avx512", 10, 27, 5, isa="avx512"),
                _sweep("avx2", 10, 27, 5, isa="avx2"),
                _sweep("avx512-plain-stores", 20, 27, 5, isa="avx512", streaming=0),
                _sweep("avx512-all-cores", 20, 27, 5, isa="avx512", threads="all"),
            ),
            minutes=10,
            exclusive=True,
        ),
        "paper": Scale(
            cells=(
                _ACCURACY,
                _sweep("avx512", 10, 27, 60, isa="avx512"),
                _sweep("avx2", 10, 27, 60, isa="avx2"),
                _sweep("avx512-all-cores", 10, 27, 60, isa="avx512", threads="all"),
                _sweep("avx2-all-cores", 10, 27, 60, isa="avx2", threads="all"),
            ),
            minutes=90,
            exclusive=True,
            hardware="a Skylake-X, Broadwell or Zen 2 machine of one's own, as in the paper",
        ),
    },
    measure=measure_times,
    plots=(
        Plot(
            "times", "bars", "two_pass", "Two passes: time per element", ylabel="ns per element", cells=("n17", "n24")
        ),
        Plot("n24", "bars", "*", "One row of 2^24 entries", ylabel="ns per element", cells=("n24",)),
        Plot(
            "sweep",
            "lines",
            "two_pass",
            "Two passes by row length",
            x="log2_n",
            xlabel="log2 of the row length",
            ylabel="ns per element",
            log="y",
        ),
        Plot(
            "algorithms",
            "lines",
            "two_pass|recompute|reload|online|torch",
            "Every algorithm by row length (AVX-512)",
            x="log2_n",
            xlabel="log2 of the row length",
            ylabel="ns per element",
            cells=("avx512",),
            log="y",
        ),
    ),
    methods=(
        "normalizers.softmax",
        "normalizers.log_softmax",
        "normalizers.logsumexp",
        "normalizers.logsumexp_pair",
        "normalizers.merge_pairs",
    ),
    code="google/XNNPACK",
    notes=(
        "The paper's recomputing baseline in XNNPACK's benchmark passes (maximum, scale) where the kernel takes "
        "(scale, maximum): times are unaffected, results would be wrong. Both are computed correctly here.",
        "The second pass walks the row backwards, so that it begins with what the first pass left in the caches; all "
        "algorithms here do.",
    ),
)
