"""Requests and answers of inference, and how they look on the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from open_inference import raw_contents
from open_inference.grpc_predict_v2_pb2 import (
    InferParameter,
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from open_inference.tensor import Tensor

from offramp_client.errors import OfframpError, ProtocolError, error_class

T = TypeVar("T")
ParameterValue: TypeAlias = bool | int | float | str
#: A tensor as the caller has it: anything that `numpy.asarray` takes, or a `Tensor`.
TensorLike: TypeAlias = npt.ArrayLike | Tensor

_RAW_FIELD = ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_MAX_INT64 = (1 << 63) - 1
_PREFIX = "offramp_"


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One request of a model or a route.

    `inputs` maps the names of the inputs to arrays in the shape that the model declares, batch dimension first where
    it has one. The array's own type travels (float32 as FP32, strings as BYTES); `Tensor.from_numpy(name, array,
    "BF16")` makes what numpy has no type for.
    """

    model: str
    inputs: Mapping[str, TensorLike]
    #: Empty: the version that the server chooses.
    version: str = ""
    #: The names of the wanted outputs; None: all.
    outputs: Sequence[str] | None = None
    #: Further request parameters, sent as they are.
    parameters: Mapping[str, ParameterValue] | None = None
    #: Lower is sooner; None and 0: the server's default.
    priority: int | None = None
    #: Comes back as the answer's `id`.
    request_id: str | None = None
    #: The sticky key of A/B routes, for instance a user id (parameter `offramp_unit`).
    unit: str | None = None
    #: Another path than the route's default, "model:NAME" for example (parameter `offramp_route`).
    route: str | None = None
    #: The last exit of an early-exit route that may be asked, by its name or number (parameter `offramp_max_exit`).
    max_exit: str | int | None = None
    #: How sure an exit of such a route has to be for this request, from 0 to 1 (parameter `offramp_min_confidence`).
    min_confidence: float | None = None
    #: In a stream: seconds that the server may spend on this request; None: the client's default.
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class AnswerPath:
    """How an Offramp server came to an answer. None, and nothing in a tuple, where it did not say."""

    #: The route's strategy: "single", "ensemble", "early_exit" or "split".
    route: str | None = None
    #: The models that took part, in order, as "name:version".
    models: tuple[str, ...] = ()
    #: Of each item of the request, in order: the stage after which an early-exit route answered.
    exits: tuple[str, ...] = ()
    #: Of each item: how sure that stage was.
    confidences: tuple[float, ...] = ()
    #: The number of the evidence that the route's answers are judged by. It rises when a model, a stage or a
    #: temperature changes, and not with thresholds.
    epoch: int | None = None
    #: The arm of a split route.
    arm: str | None = None
    #: The server's id of the request, as in its log.
    request_id: str | None = None
    #: How a split came to that arm: by the "unit", which has it every time, by a "coin", or as the "request" wished.
    assigned: str | None = None

    @property
    def exit(self) -> str | None:
        """The exit of the one item, or of all if it is the same; None if they differ."""
        return _common(self.exits)

    @property
    def confidence(self) -> float | None:
        """The confidence of the one item, or of all if it is the same; None if they differ."""
        return _common(self.confidences)

    def of_item(self, index: int) -> AnswerPath:
        """The path of one item alone."""
        return replace(
            self,
            exits=self.exits[index : index + 1] if len(self.exits) > 1 else self.exits,
            confidences=self.confidences[index : index + 1] if len(self.confidences) > 1 else self.confidences,
        )

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, ParameterValue]) -> AnswerPath:
        """Raises ProtocolError for a confidence or an epoch that is no number."""
        said = {name.removeprefix(_PREFIX): value for name, value in parameters.items() if name.startswith(_PREFIX)}
        try:
            return cls(
                models=_listed(said, "models"),
                exits=_listed(said, "exit"),
                confidences=tuple(map(float, _listed(said, "confidence"))),
                epoch=int(said["epoch"]) if "epoch" in said else None,
                **{name: str(said[name]) for name in ("route", "arm", "request_id", "assigned") if name in said},
            )
        except ValueError as error:
            raise ProtocolError(f"the answer's parameters are not as agreed: {error}") from error


@dataclass(frozen=True, slots=True)
class InferResult:
    """One answer; `result["logits"]` is the array of that output.

    Arrays are read-only views of the received bytes (`.copy()` for one to write to). BYTES come as an object array of
    `bytes`, BF16 widened to float32.
    """

    model_name: str
    model_version: str
    id: str
    parameters: Mapping[str, ParameterValue]
    #: Why there is no answer. Only in a stream: elsewhere the error is raised.
    error: OfframpError | None = None
    _outputs: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict, repr=False)

    @property
    def outputs(self) -> Mapping[str, npt.NDArray[Any]]:
        """The arrays by the names of the outputs. Raises `error` if there is one."""
        if self.error is not None:
            raise self.error
        return self._outputs

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """The array of one output. Raises KeyError with the names that there are, or `error` if there is one."""
        try:
            return self.outputs[name]
        except KeyError:
            raise KeyError(f'no output "{name}" in the answer, which has {", ".join(self.outputs) or "none"}') from None

    @property
    def path(self) -> AnswerPath:
        """How the server came to this answer."""
        return AnswerPath.from_parameters(self.parameters)


def encode(
    request: InferRequest,
    declared: Mapping[str, str] | None = None,
    limit: float | None = None,
    classes: int | None = None,
) -> bytes:
    """The bytes of a ModelInferRequest.

    `declared` are datatypes by input, to which the inputs are converted; `limit` is sent as Triton's `timeout`
    parameter, which counts microseconds; `classes` asks for the best so many in place of each output that the request
    names (Triton's classification extension). Raises ValueError or TypeError for what cannot travel.
    """
    tensors = [_tensor(name, value, (declared or {}).get(name)) for name, value in request.inputs.items()]
    message = ModelInferRequest(
        model_name=request.model,
        model_version=request.version,
        id=request.request_id or "",
        inputs=[_description(tensor) for tensor in tensors],
        outputs=[ModelInferRequest.InferRequestedOutputTensor(name=name) for name in request.outputs or ()],
    )
    if classes is not None:
        for output in message.outputs:
            output.parameters["classification"].int64_param = classes
    for name, value in _parameters(request).items():
        _set_parameter(message.parameters[name], name, value)
    if request.priority is not None:
        if request.priority < 0:
            raise ValueError(f"priority is 0 or more, and lower is sooner; got {request.priority}")
        # Unsigned, unlike other integers, because tritonclient sends it so and servers look for that.
        message.parameters["priority"].uint64_param = request.priority
    if limit is not None:
        message.parameters["timeout"].int64_param = max(1, round(limit * 1e6))
    return raw_contents.serialize(message.SerializeToString(), _RAW_FIELD, [tensor.data for tensor in tensors])


def decode(message: ModelInferResponse) -> InferResult:
    """Raises ProtocolError if the tensors are not what the message says."""
    if len(message.raw_output_contents) != len(message.outputs):
        raise ProtocolError(
            f"the answer has {len(message.outputs)} outputs and {len(message.raw_output_contents)} raw contents; "
            "raw requests are to be answered with raw contents"
        )
    pairs = zip(message.outputs, message.raw_output_contents, strict=True)
    try:
        arrays = {out.name: Tensor(out.name, out.datatype, tuple(out.shape), raw).numpy() for out, raw in pairs}
    except ValueError as error:
        raise ProtocolError(f"the answer cannot be read: output {error}") from error
    return _result(message, outputs=arrays)


def decode_streamed(message: ModelStreamInferResponse) -> InferResult:
    """An answer of a stream, or the error of one of its requests. Raises ProtocolError as `decode` does."""
    if message.error_message:
        return _result(message.infer_response, error=_streamed_error(message))
    return decode(message.infer_response)


def _tensor(name: str, value: TensorLike, datatype: str | None) -> Tensor:
    if not isinstance(value, Tensor):
        # The bytes are joined into the message at once, so the array may be shared with the caller until then.
        return Tensor.from_numpy(name, np.asarray(value), datatype, copy=False)
    if value.name != name:
        raise ValueError(f'input "{name}" is given a tensor whose name is "{value.name}"')
    return value


def _description(tensor: Tensor) -> ModelInferRequest.InferInputTensor:
    return ModelInferRequest.InferInputTensor(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)


def _listed(said: Mapping[str, ParameterValue], name: str) -> tuple[str, ...]:
    """Values for several items, or several models, are joined by commas."""
    return tuple(str(said[name]).split(",")) if said.get(name, "") != "" else ()


def _common(values: tuple[T, ...]) -> T | None:
    return values[0] if len(set(values)) == 1 else None


def _parameters(request: InferRequest) -> dict[str, ParameterValue]:
    named = {
        "offramp_unit": request.unit,
        "offramp_route": request.route,
        "offramp_max_exit": request.max_exit,
        "offramp_min_confidence": request.min_confidence,
    }
    parameters = {name: value for name, value in named.items() if value is not None}
    given = request.parameters or {}
    for name in given.keys() & {*parameters, *(["priority"] if request.priority is not None else [])}:
        raise ValueError(f'parameter "{name}" is given twice: in `parameters` and as an argument of its own')
    return {**given, **parameters}


def _set_parameter(parameter: InferParameter, name: str, value: ParameterValue) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        _set_integer(parameter, value)
    elif isinstance(value, float):
        parameter.double_param = value
    elif isinstance(value, str):
        parameter.string_param = value
    else:
        raise TypeError(f'parameter "{name}": expected bool, int, float or str, got {type(value).__name__}')


def _set_integer(parameter: InferParameter, value: int) -> None:
    if value > _MAX_INT64:
        parameter.uint64_param = value
    else:
        parameter.int64_param = value


def _result(
    message: ModelInferResponse,
    *,
    outputs: Mapping[str, npt.NDArray[Any]] | None = None,
    error: OfframpError | None = None,
) -> InferResult:
    parameters = _parameter_values(message.parameters)
    return InferResult(message.model_name, message.model_version, message.id, parameters, error, outputs or {})


def _parameter_values(parameters: Mapping[str, InferParameter]) -> dict[str, ParameterValue]:
    kinds = {name: parameter.WhichOneof("parameter_choice") for name, parameter in parameters.items()}
    return {name: getattr(parameters[name], kind) for name, kind in kinds.items() if kind}


def _streamed_error(message: ModelStreamInferResponse) -> OfframpError:
    """A stream has one status for all of its requests, so that of a single one travels in its parameters."""
    said = _parameter_values(message.infer_response.parameters)
    request_id, retry_after = said.get("offramp_request_id"), said.get("offramp_retry_after")
    return error_class(str(said.get("offramp_status", "")))(
        message.error_message,
        request_id=None if request_id is None else str(request_id),
        retry_after=float(retry_after) if isinstance(retry_after, int | float) else None,
    )
