"""A `.pt2` program written as ONNX, for the engines that read it. ONNX Runtime's own optimisation is left to the load:
saved, it took 10 to 25 ms off the load of a 90 MB model and tied the file to one processor."""

from __future__ import annotations

from offramp_common.torch_onnx import NotInOnnx, write_onnx

from offramp_server.errors import LoadError
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.onnx_source import built_source
from offramp_server.workers.engines.program import load_exported, program_of
from offramp_server.workers.engines.reexport import export_again
from offramp_server.workers.engines.torch_load import TRACING


def build_onnx(request: EngineRequest) -> None:
    """Write `built_source` for all batch sizes and lengths. Takes seconds. Raises LoadError."""
    spec = request.spec
    source = built_source(spec, request.artifacts)
    with TRACING:
        program = program_of(load_exported(spec), spec)
        sizes = range(1, spec.max_batch_size + 1)
        again = export_again(program, spec, sizes, min(2, spec.max_batch_size))
        try:
            write_onnx(again, source.inputs, source.outputs, source.path)
        except NotInOnnx as error:
            raise LoadError(f'model "{spec.name}": {error}; backend = "torch-eager" runs it as it is') from error
