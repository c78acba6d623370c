"""What a GPU makes of the engines of torch: `python benchmarks/gpu.py`, or `python -m benchmarks.gpu`.

Runs from a source tree with torch (2.11 or newer) and numpy. A ResNet-18 and a small student with seeded random weights
are exported, loaded into the server's own engines, and held against plain torch in fp32: how far the answers are off,
how long the device and a whole call take at each batch size, and how near that is to what the device could do. Then a
network that is cut in two, whose hidden state stays on the device, and the server's own requests/s over gRPC (which
needs what `pip install "offramp[server]"` installs, and is left out with the reason otherwise).

Without a GPU only answers are compared, on the CPU, for less. Markdown and JSON go to benchmarks/results, or to $OUT.
The exit status is 1 if an answer was wrong, something failed that should have run, or hidden state left the device.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __package__ in (None, ""):
    # As a script, its own folder comes first, in which modules are called like others.
    sys.path[0] = str(ROOT)
sys.path += [str(ROOT / part) for part in ("common", "proto", "server", "adapters", "clients/python")]

import torch  # noqa: E402

from benchmarks.gpu_engines import BATCHES, MODELS, PRECISIONS, Measured, exported, measure, plain_answers, seeded  # noqa: E402
from benchmarks.gpu_roofline import Ceilings, Cost, cost_of, measured_ceilings  # noqa: E402
from benchmarks.gpu_serving import NotInstalled, Served, serve  # noqa: E402
from benchmarks.gpu_stages import Staged, measure_stages  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
BACKENDS = ("torch-eager", "cuda-graphs", "torch-compile")
# Seconds: beyond it nothing new is compiled. The rest takes about two minutes.
COMPILE_BUDGET_S = 240.0


@dataclass
class Results:
    machine: dict[str, Any]
    # None: on the CPU, where nothing is timed and nothing stays on a device.
    ceilings: Ceilings | None
    costs: dict[str, Cost] = field(default_factory=dict)
    measured: list[Measured] = field(default_factory=list)
    staged: list[Staged] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    # What was left out, and why.
    left_out: list[str] = field(default_factory=list)
    # What should have run and did not, with what it said.
    failed: list[str] = field(default_factory=list)


def main() -> int:
    options = parse()
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    say(f"torch {torch.__version__}, Python {sys.version.split()[0]}, {describe(device)}")
    ceilings = measured_ceilings(torch.device(device)) if device != "cpu" else None
    results = Results(machine(device), ceilings)
    if device == "cpu":
        results.left_out.append("no GPU here: answers are compared on the CPU, and nothing is timed")
    with tempfile.TemporaryDirectory() as folder:
        run(results, Path(folder), device, options)
    write(results, Path(os.environ.get("OUT") or options.out))
    found = list(problems(results))
    for problem in found:
        say(f"WRONG: {problem}")
    return 1 if found else 0


def problems(results: Results) -> Iterator[str]:
    """What must not be so, in words."""
    yield from results.failed
    for each in results.measured:
        # In this form also for an error that is no number.
        if not each.error <= each.tolerance:
            yield f"{each.model} {each.backend} {each.precision} at {each.batch}: off by {each.error:.1e}"
    for stage in results.staged:
        if not stage.agrees:
            yield f"stages of {stage.model}, {stage.backend} at {stage.batch}: not as the whole network answers"
        if results.ceilings is not None and not stage.stayed:
            yield f"stages of {stage.model}, {stage.backend} at {stage.batch}: hidden state has left the device"
    for served in results.served:
        if not served.agrees:
            yield f"{served.model}, served with {served.backend}: answers to the same image differ"


def run(results: Results, folder: Path, device: str, options: argparse.Namespace) -> None:
    started = time.monotonic()
    for name in MODELS:
        path = exported(name, folder)
        results.costs[name] = cost_of(seeded(name))
        expected = {batch: plain_answers(path, name, batch, device) for batch in batches(device)}
        for backend, precision in combinations(device):
            label = f"{name}, {backend}, {precision}"
            if backend == "torch-compile" and time.monotonic() - started > options.compile_budget:
                results.left_out.append(f"{label}: no time was left to compile it")
                continue
            say(label)
            try:
                results.measured += measure(path, name, backend, precision, device, expected)
            except Exception as error:
                results.failed.append(f"{label}: {first_line(error)}")
        try:
            results.staged += measure_stages(name, folder, device)
        except Exception as error:
            results.failed.append(f"stages of {name}: {first_line(error)}")
        if not options.no_server:
            serve_model(results, name, path, device)


def serve_model(results: Results, name: str, path: Path, device: str) -> None:
    for backend in ("torch-eager", "cuda-graphs") if device != "cpu" else ("torch-eager",):
        say(f"{name}, served with {backend}")
        try:
            results.served.append(serve(ROOT, path, name, backend, device))
        except NotInstalled as error:
            results.left_out.append(f"{name}, served with {backend}: {error}")
        except Exception as error:
            results.failed.append(f"{name}, served with {backend}: {first_line(error)}")


def batches(device: str) -> Sequence[int]:
    return BATCHES if device != "cpu" else (1, 8)


def combinations(device: str) -> Iterator[tuple[str, str]]:
    """Compiling comes last, and fp32 of it first: it is what time may run out for."""
    for backend in BACKENDS:
        for precision in PRECISIONS:
            if device != "cpu" or (backend != "cuda-graphs" and (backend, precision) != ("torch-compile", "fp16")):
                yield backend, precision


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results; $OUT goes before it")
    parser.add_argument("--no-server", action="store_true", help="leave out the requests/s of the server")
    parser.add_argument(
        "--compile-budget", type=float, default=COMPILE_BUDGET_S, help="seconds; then nothing is compiled"
    )
    return parser.parse_args()


def machine(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "cores": len(os.sched_getaffinity(0)),
        "load average": round(os.getloadavg()[0], 1),
        "device": describe(device),
    }
    if device != "cpu":
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    return found


def describe(device: str) -> str:
    if device == "cpu":
        return "CPU"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def write(results: Results, folder: Path) -> None:
    from benchmarks.gpu_report import markdown

    folder.mkdir(parents=True, exist_ok=True)
    name = f"gpu-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S')}"
    text = markdown(asdict(results))
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
    print(text)
    say(f"written to {folder / name}.md and .json")


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
