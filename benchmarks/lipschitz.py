"""Lipschitz certificates: the methods of this library beside a general solver for semidefinite programs.

    python benchmarks/lipschitz.py [--networks 2,32 5,32 …] [--largest-general N] [--out DIR]

Random MaxMin networks of so many linear layers and that width, for 784 inputs and 10 outputs; weights are drawn so that
each layer keeps lengths on average. One thread, processor time of one run each. ``full`` uses all multipliers;
``barrier`` and ``scaling`` solve the layer-wise problem S = P = 0, as does Clarabel behind cvxpy, where both are
installed and the activations have at most N units in all: its time grows with about the fifth power of the width.
The bounds stand beside the times: a faster solver must not give a larger one.

The linear system of one step of the interior-point method is timed beside the textbook's, which holds a matrix for
every multiplier, in turns; the limit is one product of two matrices of the size of the inequality. Figures go to
DIR/benchmark-lipschitz.json.
"""

from __future__ import annotations

import argparse
import importlib.util
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from _timing import CONSOLE, table, write_record
from softgate.diagnostics import LipschitzCertificate, lipschitz_bound
from softgate.diagnostics.lipschitz import forms, networks, solving
from softgate.diagnostics.lipschitz.increments import Activation
from softgate.lab.timing import interleaved, load_per_core, step_seconds

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
#: Largest number of activations for which the textbook's matrices are made.
_TEXTBOOK = 256
NETWORKS = ((2, 32), (2, 64), (5, 32), (5, 64), (8, 32), (8, 64), (18, 32))


def network(layers: int, width: int, inputs: int = 784, outputs: int = 10) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    widths = [inputs, *[width] * (layers - 1), outputs]
    return [torch.randn(b, a, generator=generator, dtype=torch.float64) / a**0.5 for a, b in pairwise(widths)]


def measure(layers: int, width: int, general: int) -> dict[str, Any]:
    weights = network(layers, width)
    candidates: dict[str, dict[str, str]] = {
        "full": {"method": "barrier"},
        "barrier": {"method": "barrier", "multiplier": "diagonal"},
        "scaling": {"method": "scaling", "multiplier": "diagonal"},
    }
    if importlib.util.find_spec("cvxpy") and (layers - 1) * width <= general:
        candidates["clarabel"] = {"method": "cvxpy", "multiplier": "diagonal"}
    found: dict[str, LipschitzCertificate] = {}
    seconds = {}
    for name, options in candidates.items():

        def run(name: str = name, options: dict[str, str] = options) -> None:
            found[name] = lipschitz_bound(weights, **options)  # type: ignore[arg-type]

        seconds[name] = step_seconds(run, turns=1, warm=0).median
    assert all(certificate.verify() for certificate in found.values())
    return {
        "layers": layers,
        "width": width,
        "seconds": seconds,
        "bound": {name: certificate.value for name, certificate in found.items()},
        "product": found["full"].product,
        "lower": found["full"].lower_bound,
    }


def one_step(layers: int, width: int) -> dict[str, Any]:
    """Time to make the linear system of a step for the full multipliers."""
    weights = tuple(network(layers, width))
    model = networks.Network("feedforward", weights, (Activation("groupsort", 2),) * (layers - 1))
    form, _ = networks.form_of(model, "full", "l2", None).pruned()
    problem, theta = solving.euclidean(form, *forms.start(form))
    factor = torch.linalg.cholesky(problem.linear(theta) - problem.fixed)
    inverse = torch.cholesky_inverse(factor)
    dual = 2.0 * inverse
    parts = torch.stack([problem.linear(unit) for unit in torch.eye(len(theta), dtype=torch.float64)])

    def textbook() -> torch.Tensor:
        return (inverse @ parts @ dual).flatten(1) @ parts.flatten(1).T

    ours = problem.normal_matrix(inverse, dual)
    assert float((ours - textbook()).abs().max()) <= 1e-8 * float(ours.abs().max())
    steps = {
        "structured": lambda: problem.normal_matrix(inverse, dual),
        "textbook": textbook,
        "product": lambda: inverse @ dual,
    }
    ms = {name: 1e3 * timing.median for name, timing in interleaved(steps, turns=5).items()}
    return {"layers": layers, "width": width, "size": len(inverse), "variables": len(theta), "ms": ms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=lambda text: tuple(map(int, text.split(","))), nargs="+", default=NETWORKS)
    parser.add_argument("--largest-general", type=int, default=160)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = [measure(layers, width, options.largest_general) for layers, width in options.networks]
    rows = [
        [f["layers"], f["width"], name, seconds, f["bound"][name], f["product"], f["lower"]]
        for f in figures
        for name, seconds in f["seconds"].items()
    ]
    table("certificates", ["layers", "width", "method", "s", "bound", "product", "largest Jacobian"], rows)
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    steps = [one_step(layers, width) for layers, width in options.networks if (layers - 1) * width <= _TEXTBOOK]
    lines = [[s["layers"], s["width"], s["size"], s["variables"], *s["ms"].values()] for s in steps]
    table("linear system of a step, ms (median)", ["layers", "width", "size", "variables", *steps[0]["ms"]], lines)
    write_record(options.out / "benchmark-lipschitz.json", {"certificates": figures, "step": steps})


if __name__ == "__main__":
    main()
