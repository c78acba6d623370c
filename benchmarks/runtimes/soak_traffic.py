"""Mixed traffic for a while: `python -m benchmarks.runtimes.soak_traffic TARGET SECONDS`.

Threads of clients with calls of all kinds, of strangers and, if asked for, of attackers, each with connections of its
own. It writes one line of JSON: of each kind how often it ended how, and which ends were wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from benchmarks.runtimes.soak_calls import call_until
from benchmarks.runtimes.soak_sockets import ATTACKS, STRANGERS, meet_until


@dataclass
class Ends:
    """By `KIND END`."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, end: str, right: bool) -> None:
        with self._lock:
            self.counts[f"{kind} {end}"] += 1
            if not right:
                self.wrong[f"{kind} {end}"] += 1


def run(target: str, seconds: float, clients: int, strangers: int, attackers: int, seed: int) -> Ends:
    """Blocks. An attacker keeps to one kind of attack, so that all of them go on all the time if there are enough."""
    ends, end = Ends(), time.monotonic() + seconds
    attacks = list(ATTACKS.items())
    parts: list[Callable[[], None]] = [
        *(partial(call_until, end, target, seed + number, ends.note) for number in range(clients)),
        *(partial(meet_until, end, target, STRANGERS, seed - number, ends.note) for number in range(strangers)),
        *(
            partial(meet_until, end, target, dict([attacks[number % len(attacks)]]), seed + number, ends.note)
            for number in range(attackers)
        ),
    ]
    failures: list[BaseException] = []
    threads = [threading.Thread(target=partial(guarded, part, failures)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return ends


def guarded(part: Callable[[], None], failures: list[BaseException]) -> None:
    try:
        part()
    except Exception as error:
        failures.append(error)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--strangers", type=int, default=2)
    parser.add_argument("--attackers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    ends = run(**vars(parse(sys.argv[1:])))
    print(json.dumps({"counts": ends.counts, "wrong": ends.wrong}))
