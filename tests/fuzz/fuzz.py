"""Fuzz our HTTP/2 and what is built on it for a while: `make fuzz`, with options in ARGS (`make fuzz ARGS=--help`).

What is found stays in build/fuzz: inputs that reach something new, from where the next run goes on, and those for which
something does not hold, with the command that shows it again.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path += [str(_HERE), str(_HERE.parent / "unit")]

from fuzz_steps import read_script  # noqa: E402
from fuzz_targets import CORPUS, TARGETS, target_of  # noqa: E402

FOUND = Path("build/fuzz")
# Of an input. Longer ones find what shorter ones do, later.
_MOST_BYTES = 700
# A single input takes milliseconds. Seconds and MiB.
_TOO_LONG, _TOO_MUCH = 20, 2048
_DEFAULT_SECONDS = 600


def guided(target: str, *arguments: str | Path, echo: bool = True) -> subprocess.CompletedProcess[str]:
    """One run of libFuzzer with its own options and folders; `echo` shows what it says, otherwise it is kept."""
    environment = os.environ | {"OFFRAMP_FUZZ_TARGET": target, "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    # A process begins with what the one that started it has had at most, which in a run of all tests is much.
    most = _TOO_MUCH + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    common = [f"-max_len={_MOST_BYTES}", f"-timeout={_TOO_LONG}", f"-rss_limit_mb={most}", "-print_final_stats=1"]
    command = [sys.executable, _HERE / "fuzz_guided.py", *common, *arguments]
    kept = {} if echo else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(command, env=environment, text=True, check=False, **kept)  # type: ignore[call-overload,no-any-return]


def main() -> int:
    options = _parser().parse_args()
    targets: Sequence[str] = options.target or TARGETS
    if options.show:
        return _show(targets, options.show)
    if importlib.util.find_spec("atheris") is None:
        raise SystemExit("atheris has no wheel for this machine or this Python: `make test` runs what needs none")
    seconds = max(1, options.seconds // len(targets))
    failed = [target for target in targets if not _fuzz(target, seconds)]
    if options.keep and not failed:
        for target in targets:
            _keep(target)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__.split("\n\n")[0])
    parser.add_argument("--target", action="append", choices=TARGETS, help="again for each; otherwise all")
    parser.add_argument("--seconds", type=int, default=_DEFAULT_SECONDS, help="for all of them (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="put what reaches something new into tests/fuzz/corpus")
    parser.add_argument("--show", nargs="+", type=Path, metavar="FILE", help="run these inputs of one target instead")
    return parser


def _fuzz(target: str, seconds: int) -> bool:
    """Whether nothing was found."""
    print(f"\n{target}: {seconds} s", flush=True)
    found, corpus = FOUND / target, CORPUS / target
    for folder in (found, corpus):
        folder.mkdir(parents=True, exist_ok=True)
    before = set(_failures(target))
    run = guided(target, f"-max_total_time={seconds}", f"-artifact_prefix={FOUND / target}-", found, corpus)
    for failure in sorted(set(_failures(target)) - before):
        print(
            f"\nFOUND in {target}. To see it again:\n  make fuzz ARGS='--target {target} --show {failure}'", flush=True
        )
    return run.returncode == 0


def _failures(target: str) -> Iterable[Path]:
    return (path for path in FOUND.glob(f"{target}-*") if path.is_file())


def _show(targets: Sequence[str], inputs: Iterable[Path]) -> int:
    if len(targets) != 1:
        raise SystemExit("--show wants to know of which --target the input is")
    for path in inputs:
        data = path.read_bytes()
        script = read_script(data)
        print(f"{path}: setup {script.setup}", *script.steps, sep="\n  ", flush=True)
        target_of(targets[0]).check(data)
    return 0


def _keep(target: str) -> None:
    """The fewest and shortest inputs that reach all that is known to be reachable."""
    with tempfile.TemporaryDirectory(prefix="offramp-fuzz-") as folder:
        merged = guided(target, "-set_cover_merge=1", folder, CORPUS / target, FOUND / target, echo=False)
        if merged.returncode:
            raise SystemExit(f"the corpus of {target} could not be merged:\n{merged.stdout[-2000:]}")
        kept = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    corpus = CORPUS / target
    for path in corpus.iterdir():
        if path.name not in kept:
            path.unlink()
    for name, data in kept.items():
        (corpus / name).write_bytes(data)
    print(f"{target}: {len(kept)} inputs, {sum(map(len, kept.values()))} bytes in {corpus}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
