"""Answers to bytes. What those of one model and of one shape have in common is put into bytes once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from open_inference.grpc_predict_v2_pb2 import ModelInferResponse

from offramp_server.endpoints import EndpointInfo
from offramp_server.inference import InferResponse, ParameterValue
from offramp_server.rpc import codec
from offramp_server.rpc.codec import ReplyPlan, with_raw
from offramp_server.rpc.parameters import write_parameters
from offramp_server.transport.interface import Parts

# Callers choose shapes, so there is no end to them.
_MOST = 256


class AnswerWriter:
    """For all clients. Used on one thread."""

    def __init__(self) -> None:
        # What `_described` makes.
        self._known: dict[Hashable, bytes] = {}

    def encode(
        self,
        response: InferResponse,
        plan: ReplyPlan,
        *,
        id: str,
        parameters: Mapping[str, ParameterValue],
        endpoint: EndpointInfo | None,
    ) -> bytes | Parts:
        """As `codec.encode` does."""
        if plan.typed or plan.placements or plan.classes:
            return codec.encode(response, plan, id=id, parameters=parameters, endpoint=endpoint)
        outputs = response.outputs
        shapes = [(tensor.name, tensor.datatype, tensor.shape) for tensor in outputs]
        key = (response.model, response.version, *shapes)
        described = self._known.get(key)
        if described is None:
            if len(self._known) >= _MOST:
                self._known.clear()
            described = self._known[key] = _described(response)
        # Serialised messages that are joined are one message (protobuf's encoding guide).
        return with_raw(described + _its_own(response, id, parameters), [tensor.data for tensor in outputs])


def _described(response: InferResponse) -> bytes:
    message = ModelInferResponse(model_name=response.model, model_version=response.version)
    for tensor in response.outputs:
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return message.SerializeToString()


def _its_own(response: InferResponse, id: str, parameters: Mapping[str, ParameterValue]) -> bytes:
    message = ModelInferResponse(id=id) if id else ModelInferResponse()
    write_parameters(message.parameters, parameters)
    if response.parameters:
        write_parameters(message.parameters, response.parameters)
    return message.SerializeToString()
