"""ONNX Runtime with its CUDA and TensorRT providers, by IO binding.

Written against the documented options of onnxruntime-gpu and run with the provider of the CPU alone (docs/gpu.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from open_inference.tensor import BF16, Tensor

from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.kinds.onnx_gpu import TENSORRT
from offramp_server.workers.engines.onnx_runtime import OnnxRuntimeEngine, Providers, answer_of
from offramp_server.workers.engines.onnx_source import onnx_source
from offramp_server.workers.engines.warmup import batch_sizes, sample_inputs


class BoundEngine(OnnxRuntimeEngine):
    """One session whose inputs and outputs are bound once for each call, instead of looked up and copied by name."""

    def __init__(self, request: EngineRequest, providers: Providers) -> None:
        """Raises LoadError, also where the session fell back to another provider than the first: it only logs that."""
        super().__init__(request, providers)
        wanted = providers[0][0]
        used = self._session.get_providers()
        if used[0] != wanted:
            raise LoadError(
                f'model "{request.spec.name}": ONNX Runtime runs it with {used[0]}, not with {wanted}; its libraries '
                "(CUDA, cuDNN, TensorRT) are missing or of other versions than onnxruntime-gpu was built with, "
                'put them into LD_LIBRARY_PATH or use device = "cpu"'
            )
        self._binding = self._session.io_binding()
        datatypes = {tensor.datatype for tensor in (*request.spec.inputs, *request.spec.outputs)}
        # numpy has no BF16, and only arrays can be bound from the host.
        self._run = self._run_values if BF16 in datatypes else self._run_bound

    def close(self) -> None:
        self._binding = None
        super().close()

    def _run_bound(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        binding = self._binding
        assert binding is not None
        try:
            for name, tensor in zip(self._input_names, inputs, strict=True):
                binding.bind_cpu_input(name, tensor.numpy())
            for name in self._output_names:
                # Its size is known when it is computed, and it is wanted in the memory of the host.
                binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding)
            results = binding.copy_outputs_to_cpu()
        finally:
            # The memory behind the inputs is about to be used for something else.
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()
        return [answer_of(output, result) for output, result in zip(self._spec.outputs, results, strict=True)]


def load_on_gpu(request: EngineRequest) -> BoundEngine:
    """Raises LoadError."""
    return BoundEngine(request, providers(request))


def build_engines(request: EngineRequest) -> None:
    """Let TensorRT write its engines into the artifacts, by running what will be run. Raises LoadError."""
    engine = load_on_gpu(request)
    try:
        for items in batch_sizes(request.spec):
            engine.execute(sample_inputs(request.spec, items))
    except Exception as error:
        raise LoadError(f'model "{request.spec.name}": TensorRT cannot run it: {error}') from error
    finally:
        engine.close()


def providers(request: EngineRequest) -> list[tuple[str, dict[str, str]]]:
    """What is to run the graph, and what the rest of it where the first cannot."""
    device = {"device_id": request.device.partition(":")[2] or "0"}
    # fp32 means fp32: TF32 rounds to ten bits. The arena grows by what is asked for, not by powers of two.
    cuda = device | {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
    chosen = [("CUDAExecutionProvider", cuda)]
    if request.choice.variant == TENSORRT:
        chosen.insert(0, ("TensorrtExecutionProvider", device | _tensorrt(request)))
    return chosen


def _tensorrt(request: EngineRequest) -> dict[str, str]:
    folder = str(request.artifacts)
    options = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
    }
    spec = request.spec
    if not spec.batches:
        return options
    names = onnx_source(request).inputs
    # A profile for all batches at once: without it, a new largest batch would build another engine.
    sizes = {"min": 1, "opt": spec.max_batch_size, "max": spec.max_batch_size}
    return options | {f"trt_profile_{each}_shapes": _shapes(spec, names, items) for each, items in sizes.items()}


def _shapes(spec: ModelSpec, names: Sequence[str], items: int) -> str:
    pairs: list[tuple[str, Any]] = [
        (name, (items, *tensor.dims)) for name, tensor in zip(names, spec.inputs, strict=True)
    ]
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in pairs)
