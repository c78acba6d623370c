"""Generate the protobuf modules beside their .proto files (`make generate`; needs grpcio-tools).

Package `inference` is registered by tritonclient and by KServe's client in protobuf's default descriptor pool, so a
process that loads one of them could not load ours as well. The generated modules of that package therefore get a
pool of their own: the one line of generated code that names the default pool is rewritten.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent / "proto"
PRIVATE_POOL_PACKAGES = ("open_inference",)
DEFAULT_POOL_IMPORT = "from google.protobuf import descriptor_pool as _descriptor_pool\n"
DEFAULT_POOL_USE = "_descriptor_pool.Default()"


def main() -> int:
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    status = run_protoc(sources)
    for source in sources:
        if source.startswith(PRIVATE_POOL_PACKAGES):
            use_private_pool(ROOT / source.replace(".proto", "_pb2.py"))
    return status


def run_protoc(sources: list[str]) -> int:
    well_known = resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"-I{ROOT}", f"-I{well_known}", f"--python_out={ROOT}", f"--pyi_out={ROOT}", *sources]
    return int(protoc.main(arguments))


def use_private_pool(module: Path) -> None:
    text = module.read_text()
    if DEFAULT_POOL_IMPORT not in text or DEFAULT_POOL_USE not in text:
        raise SystemExit(f"{module}: this protoc writes code of a shape that generate_protos.py does not know")
    package = module.parent.name
    text = text.replace(DEFAULT_POOL_IMPORT, f"from {package} import private_pool as _private_pool\n")
    module.write_text(text.replace(DEFAULT_POOL_USE, "_private_pool.POOL"))


if __name__ == "__main__":
    sys.exit(main())
