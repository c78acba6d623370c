"""Every engine there is, in the order in which `auto` tries them after the plain one.

What mostly wins comes first, in case there is no time for all: ONNX Runtime won for every model that was measured on a
CPU where OpenVINO did not, and both are built in seconds; Inductor's packages take half a minute.
"""

from __future__ import annotations

from offramp_server.workers.engines.kind import EngineKind
from offramp_server.workers.engines.kinds.aot_inductor import AotInductorKind
from offramp_server.workers.engines.kinds.cuda_graphs import CudaGraphsKind
from offramp_server.workers.engines.kinds.onnx_runtime import OnnxRuntimeKind
from offramp_server.workers.engines.kinds.openvino import OpenVinoKind
from offramp_server.workers.engines.kinds.torch_compile import TorchCompileKind
from offramp_server.workers.engines.kinds.torch_eager import TorchEagerKind
from offramp_server.workers.engines.kinds.torch_tensorrt import TorchTensorRtKind


def engine_kinds() -> tuple[EngineKind, ...]:
    return (
        OnnxRuntimeKind(),
        OpenVinoKind(),
        TorchEagerKind(),
        CudaGraphsKind(),
        AotInductorKind(),
        TorchTensorRtKind(),
        TorchCompileKind(),
    )
