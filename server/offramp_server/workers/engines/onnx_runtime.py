"""ONNX Runtime, on the CPU unless other providers are named. Never imports torch, also for what was a `.pt2` file."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from open_inference.tensor import BF16, BYTES, ITEM_SIZES, NUMPY_TYPES, Tensor

from offramp_server.errors import InvalidRequest, LoadError
from offramp_server.model_spec import ModelSpec, TensorSpec
from offramp_server.workers.engines.answers import batch_size, check_output
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.onnx_source import OnnxSource, onnx_source

# onnx.TensorProto.BFLOAT16; importing onnx for one number would cost every worker 30 MB.
_ONNX_BFLOAT16 = 16
_FATAL = 4

# Names of execution providers with their options, the one preferred first.
Providers: TypeAlias = Sequence[tuple[str, dict[str, str]]]
_CPU: Providers = [("CPUExecutionProvider", {})]


class OnnxRuntimeEngine:
    """One session. BYTES are ONNX strings and have to be UTF-8."""

    def __init__(self, request: EngineRequest, providers: Providers = _CPU) -> None:
        """Raises LoadError."""
        spec = request.spec
        self.report = request.report()
        self._spec = spec
        source = onnx_source(request)
        self._input_names, self._output_names = source.inputs, source.outputs
        self._session = _session(spec, source, request.threads, providers)
        self._check_names()
        datatypes = {tensor.datatype for tensor in (*spec.inputs, *spec.outputs)}
        if {BF16, BYTES} <= datatypes:
            raise LoadError(f'model "{spec.name}": ONNX Runtime takes BF16 or BYTES, not both in one model')
        self._run = self._run_values if BF16 in datatypes else self._run_arrays

    def execute(self, inputs: Sequence[Tensor], staying: int = 0) -> list[Tensor]:
        batch = batch_size(self._spec, inputs)
        answers = self._run(inputs)
        for output, answer in zip(self._spec.outputs, answers, strict=True):
            check_output(self._spec, output, answer.datatype, answer.shape, batch)
        return answers

    def close(self) -> None:
        self._session = None

    def _run_arrays(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        feeds = dict(zip(self._input_names, map(_array, inputs), strict=True))
        results = self._session.run(self._output_names, feeds)
        return [answer_of(output, result) for output, result in zip(self._spec.outputs, results, strict=True)]

    def _run_values(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """numpy has no BF16, and ONNX Runtime's own values, which do, cost 50 us more for each call."""
        feeds = dict(zip(self._input_names, map(_value, inputs), strict=True))
        results = self._session.run_with_ort_values(self._output_names, feeds)
        return [_answer_value(output, result) for output, result in zip(self._spec.outputs, results, strict=True)]

    def _check_names(self) -> None:
        inputs = [item.name for item in self._session.get_inputs()]
        if set(self._input_names) != set(inputs):
            _refuse_names(self._spec, "input", self._input_names, inputs)
        known = [item.name for item in self._session.get_outputs()]
        missing = [name for name in self._output_names if name not in known]
        if missing:
            _refuse_names(self._spec, "output", self._output_names, known)


def _session(spec: ModelSpec, source: OnnxSource, threads: int, providers: Providers) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A pool that spins between calls took six times the CPU of the calls themselves, from the front end's core.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Whatever goes wrong comes as an exception too.
    options.log_severity_level = _FATAL
    try:
        if providers[0] != _CPU[0]:
            _find_libraries(onnxruntime)
        return onnxruntime.InferenceSession(str(source.path), options, providers=list(providers))
    except Exception as error:
        raise LoadError(
            f'model "{spec.name}": ONNX Runtime cannot load {source.path.name}: {str(error).strip().splitlines()[0]}'
        ) from error


def _find_libraries(onnxruntime: ModuleType) -> None:
    """CUDA and cuDNN as pip installs them, where the linker does not look. Releases before 1.21 do not have it."""
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:
        # What it does not find it prints, for whoever reads the logs.
        with redirect_stdout(sys.stderr):
            preload()


def _refuse_names(spec: ModelSpec, what: str, declared: Sequence[str], found: Sequence[str]) -> None:
    raise LoadError(
        f'model "{spec.name}": {what}s {", ".join(declared)} are declared, {spec.path.name} has {", ".join(found)}'
    )


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    return _strings(tensor) if tensor.datatype == BYTES else tensor.numpy()


def _strings(tensor: Tensor) -> npt.NDArray[Any]:
    """ONNX Runtime takes str objects; given bytes it would write out their Python notation."""
    elements = tensor.numpy().reshape(-1)
    try:
        texts = [element.decode() for element in elements]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f'input "{tensor.name}": strings of an ONNX model are UTF-8, got {error}') from error
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array.reshape(tensor.shape)


def _value(tensor: Tensor) -> Any:
    from onnxruntime import OrtValue

    array = np.frombuffer(tensor.data, dtype=NUMPY_TYPES[tensor.datatype]).reshape(tensor.shape)
    if tensor.datatype == BF16:
        return OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ONNX_BFLOAT16)
    return OrtValue.ortvalue_from_numpy(array)


def answer_of(output: TensorSpec, result: Any) -> Tensor:
    array = np.asarray(result)
    if array.dtype == NUMPY_TYPES.get(output.datatype) and array.size and array.flags.c_contiguous:
        return Tensor(output.name, output.datatype, array.shape, array.data.cast("B"))
    return Tensor.from_numpy(output.name, array, copy=False)


def _answer_value(output: TensorSpec, value: Any) -> Tensor:
    shape = tuple(value.shape())
    if value.data_type() != "tensor(bfloat16)":
        return answer_of(output, value.numpy())
    size = ITEM_SIZES[BF16] * math.prod(shape)
    return Tensor(output.name, BF16, shape, ctypes.string_at(value.data_ptr(), size) if size else b"")
