"""One target, guided by coverage: options, folders and files are libFuzzer's, and so is the exit status.

Which target is in the environment, since libFuzzer starts this again with options of its own when it merges. `fuzz.py`
sees to all of that.
"""

from __future__ import annotations

import os
import shlex
import sys

import atheris
from fuzz_steps import crossed, mutated
from fuzz_targets import target_of

TARGET = "OFFRAMP_FUZZ_TARGET"


def main() -> None:
    # What is to be covered is imported here for the first time.
    with atheris.instrument_imports(include=["offramp_common", "offramp_client._native", "offramp_server.transport"]):
        target = target_of(os.environ[TARGET])
    # As a shell is to start it.
    sys.argv[0] = f"{shlex.quote(sys.executable)} {shlex.quote(sys.argv[0])}"
    atheris.Setup(
        sys.argv,
        target.check,
        custom_mutator=lambda data, most, seed: mutated(data, most, seed, atheris.Mutate),
        custom_crossover=crossed,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
