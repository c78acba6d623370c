"""Generate the protobuf modules beside their .proto files (`make generate`), or `--check` that they are up to date.

Needs the grpcio-tools of scripts/generate-requirements.txt.

Package `inference` is registered by tritonclient and by KServe's client in protobuf's default descriptor pool, so a
process that loads one of them could not load ours as well. The generated modules of that package therefore get a
pool of their own: the one line of generated code that names the default pool is rewritten.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent / "proto"
PRIVATE_POOL_PACKAGES = ("open_inference",)
DEFAULT_POOL_IMPORT = "from google.protobuf import descriptor_pool as _descriptor_pool\n"
DEFAULT_POOL_USE = "_descriptor_pool.Default()"


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate the protobuf modules beside their .proto files.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a module is out of date")
    check: bool = parser.parse_args().check
    if not check:
        generate(ROOT)
        return 0
    stale = out_of_date()
    for module in stale:
        print(f"{module} is not what its .proto file generates; run: make generate", file=sys.stderr)
    return 1 if stale else 0


def generate(output: Path) -> None:
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    run_protoc(sources, output)
    for source in sources:
        if source.startswith(PRIVATE_POOL_PACKAGES):
            use_private_pool(output / source.replace(".proto", "_pb2.py"))


def out_of_date() -> list[Path]:
    """Generated modules that differ from a fresh run, are missing, or have lost their .proto file."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = modules(Path(scratch))
    present = modules(ROOT)
    return sorted(ROOT / name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name))


def modules(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*_pb2.py*") if path.suffix != ".pyc"}


def run_protoc(sources: list[str], output: Path) -> None:
    well_known = resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"-I{ROOT}", f"-I{well_known}", f"--python_out={output}", f"--pyi_out={output}", *sources]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; what it said is above")


def use_private_pool(module: Path) -> None:
    text = module.read_text()
    if DEFAULT_POOL_IMPORT not in text or DEFAULT_POOL_USE not in text:
        raise SystemExit(f"{module}: this protoc writes code of a shape that generate_protos.py does not know")
    package = module.parent.name
    text = text.replace(DEFAULT_POOL_IMPORT, f"from {package} import private_pool as _private_pool\n")
    module.write_text(text.replace(DEFAULT_POOL_USE, "_private_pool.POOL"))


if __name__ == "__main__":
    sys.exit(main())
