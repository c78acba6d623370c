"""Bare compute: times a program with no server around it, on command.

`python -m benchmarks.runtimes.bare_compute DIRECTORY NAME...` loads NAME.pt2 files, prints `ready`, then for each
line `NAME BATCH SECONDS` on standard input prints one line of JSON: `{"seconds": [...], "cpu_s": s}`, the wall time of
each call and the CPU time of all of them.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.runtimes.program import Program

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
    directory = Path(sys.argv[1])
    programs = {name: Program(directory / f"{name}.pt2") for name in sys.argv[2:]}
    shapes = {name: np.load(directory / f"{name}.npz")["inputs"].shape[1:] for name in programs}
    print("ready", flush=True)
    for line in sys.stdin:
        name, batch, duration_s = line.split()
        timing = time_calls(programs[name], int(batch), float(duration_s), shapes[name])
        print(json.dumps(timing), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
