"""Bare compute: times a program with no server around it, on command.

`python -m benchmarks.runtimes.bare_compute FILE...` loads model files (beside each NAME.pt2 or NAME.onnx is a NAME.npz
with inputs), prints `ready`, then for each line `NAME BATCH SECONDS` on standard input prints one line of JSON:
`{"seconds": [...], "cpu_s": s}`, the wall time of each call and the CPU time of all of them.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.runtimes.program import Program, load_program

WARM_UP_CALLS = 3


def time_calls(
    program: Program, batch: int, duration_s: float, item_shape: tuple[int, ...]
) -> dict[str, float | list[float]]:
    inputs = np.random.default_rng(0).standard_normal((batch, *item_shape), dtype=np.float32)
    for _ in range(WARM_UP_CALLS):
        program(inputs)
    taken: list[float] = []
    cpu = time.process_time()
    end = time.perf_counter() + duration_s
    while (started := time.perf_counter()) < end:
        program(inputs)
        taken.append(time.perf_counter() - started)
    return {"seconds": taken, "cpu_s": time.process_time() - cpu}


def main() -> int:
    files = {Path(file).stem: Path(file) for file in sys.argv[1:]}
    programs = {name: load_program(file) for name, file in files.items()}
    shapes = {name: np.load(file.with_suffix(".npz"))["inputs"].shape[1:] for name, file in files.items()}
    print("ready", flush=True)
    for line in sys.stdin:
        name, batch, duration_s = line.split()
        timing = time_calls(programs[name], int(batch), float(duration_s), shapes[name])
        print(json.dumps(timing), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
