"""Checks with a real gRPC client that a server is ready and answers with the right numbers."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import grpc
import numpy as np
from numpy.typing import NDArray
from open_inference import grpc_predict_v2_pb2 as pb

from benchmarks.harness.workloads import Workload
from benchmarks.runtimes.route_load import METHOD

# What a target begins with where the server speaks TLS.
HTTPS = "https://"
SERVICE = "/inference.GRPCInferenceService/"
CALL_TIMEOUT_S = 30.0
POLL_S = 0.2
# The same program in a batch of another size rounds differently in the last bits.
RELATIVE_TOLERANCE = 1e-3
ABSOLUTE_TOLERANCE = 1e-4


class WrongAnswerError(Exception):
    """A server refused a valid request or answered with other numbers than the model gives."""


def open_channel(target: str) -> grpc.Channel:
    """For messages of any size, to HOST:PORT, or to https://HOST:PORT, which is trusted as it shows itself."""
    options = [("grpc.max_receive_message_length", -1)]
    if not target.startswith(HTTPS):
        return grpc.insecure_channel(target, options)
    address = target.removeprefix(HTTPS)
    host, _, port = address.rpartition(":")
    authorities = ssl.get_server_certificate((host, int(port))).encode()
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authorities), options)


def wait_until_ready(target: str, models: Iterable[str], still_hopeful: Callable[[], None]) -> None:
    """Poll ModelReady until every one of `models` is ready; `still_hopeful` raises when it is time to give up."""
    with open_channel(target) as channel:
        for model in models:
            while not is_ready(channel, model):
                still_hopeful()
                time.sleep(POLL_S)


def is_ready(channel: grpc.Channel, model: str) -> bool:
    ask = channel.unary_unary(
        f"{SERVICE}ModelReady", pb.ModelReadyRequest.SerializeToString, pb.ModelReadyResponse.FromString
    )
    try:
        return bool(ask(pb.ModelReadyRequest(name=model), timeout=CALL_TIMEOUT_S).ready)
    except grpc.RpcError:
        return False


def verify(target: str, workload: Workload) -> None:
    """Send all sixteen inputs at once and compare each answer with the model's own.

    Raises WrongAnswerError.
    """
    single = replace(workload, items=1)
    with open_channel(target) as channel:
        infer = channel.unary_unary(METHOD, response_deserializer=pb.ModelInferResponse.FromString)
        requests = [single.request(index) for index in range(len(workload.inputs))]
        try:
            futures = [infer.future(request, timeout=CALL_TIMEOUT_S) for request in requests]
            answers = [decode(future.result(), workload) for future in futures]
        except grpc.RpcError as error:
            raise WrongAnswerError(f"{workload.name}: {error.code().name}: {error.details()}") from error
    compare(workload, np.stack(answers))


def compare(workload: Workload, answers: NDArray[np.float32]) -> None:
    if not np.allclose(answers, workload.outputs, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE):
        worst = float(np.abs(answers - workload.outputs).max())
        raise WrongAnswerError(f"{workload.name}: answers differ from the model's by up to {worst}")


def decode(response: pb.ModelInferResponse, workload: Workload) -> NDArray[np.float32]:
    if response.raw_output_contents:
        values = np.frombuffer(response.raw_output_contents[0], np.float32)
    else:
        values = np.array(response.outputs[0].contents.fp32_contents, np.float32)
    if values.size != workload.outputs[0].size:
        raise WrongAnswerError(f"{workload.name}: {values.size} numbers instead of {workload.outputs[0].size}")
    return values.reshape(workload.output_shape)
