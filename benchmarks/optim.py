"""OrthoGrad on top of AdamW; optimistic mirror descent beside torch's optimizers; Hedge; best-response layers.

    python benchmarks/optim.py [--seconds S] [--out DIR]

One thread, candidates in turns. Figures go to DIR/benchmark-optim.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _timing import CONSOLE, table, write_record
from softgate.lab.timing import interleaved, load_per_core
from softgate.optim import (
    BestResponseLinear,
    BestResponseLSTM,
    OptimisticHedge,
    OptimisticMirrorDescent,
    project_orthogonal_,
)

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
MODELS = {
    "MLP 226-200-200-113": [(200, 226), (200, 200), (113, 200)],
    "20 layers of 256": [(256, 256), (256,)] * 20,
    "12 matrices of 1024": [(1024, 1024)] * 12,
}
#: Streams and experts of a batch.
EXPERTS = ((1024, 256), (64, 16))
#: Rows and features of a best-response layer; steps, rows and units of an LSTM; hyper-parameters.
RESPONSES, RECURRENT, HYPER = ((128, 1024),), ((35, 20, 200),), 7


def weights(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    for weight in made:
        weight.grad = 1e-3 * torch.randn(weight.shape, generator=generator)
    return made


def measure(name: str, shapes: Sequence[tuple[int, ...]], seconds: float) -> dict[str, Any]:
    params = weights(shapes)
    options: dict[str, Any] = {"lr": 1e-6, "weight_decay": 0.0}
    candidates = {
        "adamw_foreach": torch.optim.AdamW(weights(shapes), foreach=True, **options).step,
        "adamw_fused": torch.optim.AdamW(weights(shapes), fused=True, **options).step,
        "projection": lambda: project_orthogonal_(params),
        "projection_global": lambda: project_orthogonal_(params, scope="global"),
    }
    times = interleaved(candidates, turns=9, seconds=seconds, most=400)
    return {
        "model": name,
        "parameters": sum(p.numel() for p in params),
        "ms": {candidate: 1e3 * timing.median for candidate, timing in times.items()},
        "overhead on foreach": times["projection"].median / times["adamw_foreach"].median,
        "overhead on fused": times["projection"].median / times["adamw_fused"].median,
    }


def measure_mirror(name: str, shapes: Sequence[tuple[int, ...]], seconds: float) -> dict[str, Any]:
    """One step; the peer that does the nearest thing keeps one vector too: SGD with momentum."""
    candidates = {
        "constant": OptimisticMirrorDescent(weights(shapes), lr=1e-6).step,
        "sea": OptimisticMirrorDescent(weights(shapes), lr="sea", diameter=1e-6).step,
        "sgd_momentum": torch.optim.SGD(weights(shapes), lr=1e-6, momentum=0.9, foreach=True).step,
        "sgd_momentum_fused": torch.optim.SGD(weights(shapes), lr=1e-6, momentum=0.9, fused=True).step,
        "adamw_fused": torch.optim.AdamW(weights(shapes), lr=1e-6, fused=True).step,
    }
    times = interleaved(candidates, turns=9, seconds=seconds, most=400)
    return {
        "model": name,
        "parameters": sum(w.numel() for w in weights(shapes)),
        "ms": {candidate: 1e3 * timing.median for candidate, timing in times.items()},
    }


def measure_hedge(streams: int, experts: int, seconds: float) -> dict[str, Any]:
    """One round of all streams, prediction and update."""
    losses = torch.randn(streams, experts, generator=torch.Generator().manual_seed(0))

    def rounds(eta: float | str) -> Any:
        hedge = OptimisticHedge(experts, eta, batch_shape=(streams,), dtype=torch.float32)

        def one() -> None:
            hedge.predict()
            hedge.update(losses)

        return one

    candidates = {
        "constant": rounds(0.1),
        "auto": rounds("auto"),
        "log_softmax": lambda: torch.log_softmax(losses, -1),
    }
    times = interleaved(candidates, turns=9, seconds=seconds, most=2000)
    ms = {candidate: 1e3 * timing.median for candidate, timing in times.items()}
    return {"streams": streams, "experts": experts, "ms": ms}


def measure_response(rows: int, features: int, seconds: float) -> dict[str, Any]:
    """Forward and backward; the peer is one plain layer with as many weights."""
    x, lam = torch.randn(rows, features), torch.randn(rows, HYPER)
    ours, plain = BestResponseLinear(features, features, HYPER), torch.nn.Linear(features, 2 * features)
    single = torch.nn.Linear(features, features)
    candidates = {
        "response": lambda: ours(x, lam).sum().backward(),
        "linear_twice_as_wide": lambda: plain(x).sum().backward(),
        "linear": lambda: single(x).sum().backward(),
    }
    times = interleaved(candidates, turns=9, seconds=seconds, most=200)
    return {
        "rows": rows,
        "features": features,
        "ms": {candidate: 1e3 * timing.median for candidate, timing in times.items()},
    }


def _loop(net: BestResponseLSTM, x: Tensor, lam: Tensor) -> Tensor:
    """Every step and every product by itself, as the authors' cell does."""
    i2h, h2h = net.i2h[0], net.h2h[0]
    h = c = torch.zeros(x.shape[1], h2h.in_features)
    outputs = []
    for step in x:
        total: Any = 0.0
        for layer, value in ((i2h, step), (h2h, h)):
            (w, v), (b, d), gate = layer.weights.chunk(2), layer.biases.chunk(2), lam @ layer.gates.T
            of_weight, of_bias = gate.chunk(2, 1)
            total = total + (value @ w.T + b) + of_weight * (value @ v.T) + of_bias * d
        forget, write, out, candidate = total.chunk(4, 1)
        c = forget.sigmoid() * c + write.sigmoid() * candidate.tanh()
        h = out.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs)


def measure_recurrent(steps: int, rows: int, units: int, seconds: float) -> dict[str, Any]:
    """Forward and backward of one layer over a sequence."""
    net, x, lam = BestResponseLSTM(units, units, 1, HYPER), torch.randn(steps, rows, units), torch.randn(rows, HYPER)
    plain = torch.nn.LSTM(units, units)
    assert torch.allclose(_loop(net, x, lam), net(x, lam=lam)[0], atol=1e-4)
    candidates = {
        "response": lambda: net(x, lam=lam)[0].sum().backward(),
        "loop": lambda: _loop(net, x, lam).sum().backward(),
        "lstm": lambda: plain(x)[0].sum().backward(),
    }
    times = interleaved(candidates, turns=7, seconds=seconds, most=100)
    return {
        "steps": steps,
        "rows": rows,
        "units": units,
        "ms": {candidate: 1e3 * timing.median for candidate, timing in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="per row of the table")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(name, shapes, options.seconds) for name, shapes in MODELS.items()]
    header = ["model", "parameters", *found[0]["ms"], "overhead on foreach", "overhead on fused"]
    lines = [[f["model"], f["parameters"], *f["ms"].values(), *(f[h] for h in header[-2:])] for f in found]
    table("one step, ms (median)", header, lines)
    mirror = [measure_mirror(name, shapes, options.seconds) for name, shapes in MODELS.items()]
    header = ["model", "parameters", *mirror[0]["ms"]]
    table("one step, ms (median)", header, [[m["model"], m["parameters"], *m["ms"].values()] for m in mirror])
    hedge = [measure_hedge(*size, options.seconds) for size in EXPERTS]
    header = ["streams", "experts", *hedge[0]["ms"]]
    table("one round, ms (median)", header, [[h["streams"], h["experts"], *h["ms"].values()] for h in hedge])
    response = [measure_response(*size, options.seconds) for size in RESPONSES]
    recurrent = [measure_recurrent(*size, options.seconds) for size in RECURRENT]
    for title, rows in (("best-response layer", response), ("best-response LSTM", recurrent)):
        header = [*(key for key in rows[0] if key != "ms"), *rows[0]["ms"]]
        lines = [[*(v for k, v in row.items() if k != "ms"), *row["ms"].values()] for row in rows]
        table(f"{title}, forward and backward, ms (median)", header, lines)
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    sections = {
        "orthograd": found,
        "mirror_descent": mirror,
        "hedge": hedge,
        "response": response,
        "recurrent": recurrent,
    }
    write_record(options.out / "benchmark-optim.json", sections)


if __name__ == "__main__":
    main()
