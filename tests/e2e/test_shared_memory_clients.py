"""Triton's system shared memory, where it is enabled and where it is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shm
from conftest import SHARED_MEMORY_PREFIX
from server_process import ServerProcess
from triton_calls import add_sub, check_add_sub, operands
from tritonclient.utils import InferenceServerException

MODELS = ["add_sub_pt2", "add_sub_onnx"]
ROWS = 4
TENSOR_BYTES = ROWS * 16 * 4
KEYS = {name: f"{SHARED_MEMORY_PREFIX}{os.getpid()}_{name}" for name in ("in", "out")}


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture
def regions(client: triton.InferenceServerClient) -> Iterator[dict[str, Any]]:
    """Two regions of two tensors each, registered under the names of KEYS."""
    handles = {name: shm.create_shared_memory_region(name, key, 2 * TENSOR_BYTES) for name, key in KEYS.items()}
    for name, key in KEYS.items():
        client.register_system_shared_memory(name, key, 2 * TENSOR_BYTES)
    yield handles
    client.unregister_system_shared_memory()
    for handle in handles.values():
        shm.destroy_shared_memory_region(handle)


def shared_inputs() -> list[triton.InferInput]:
    inputs = [triton.InferInput(name, [ROWS, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    for position, entry in enumerate(inputs):
        entry.set_shared_memory("in", TENSOR_BYTES, offset=position * TENSOR_BYTES)
    return inputs


def shared_outputs(size: int = TENSOR_BYTES) -> list[triton.InferRequestedOutput]:
    outputs = [triton.InferRequestedOutput(name) for name in ("OUTPUT0", "OUTPUT1")]
    for position, entry in enumerate(outputs):
        entry.set_shared_memory("out", size, offset=position * TENSOR_BYTES)
    return outputs


def refusal(call: Any, *arguments: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments)
    return caught.value.status(), caught.value.message()


@pytest.mark.parametrize("model", MODELS)
def test_tensors_come_and_go_through_shared_memory(
    client: triton.InferenceServerClient, regions: dict[str, Any], model: str
) -> None:
    left, right = operands(ROWS)
    shm.set_shared_memory_region(regions["in"], [left, right])

    result = client.infer(model, shared_inputs(), outputs=shared_outputs())

    for position, (name, expected) in enumerate((("OUTPUT0", left + right), ("OUTPUT1", left - right))):
        offset = position * TENSOR_BYTES
        found = shm.get_contents_as_numpy(regions["out"], np.int32, (ROWS, 16), offset=offset)
        np.testing.assert_array_equal(found, expected)
        # Nothing of it in the message.
        output = result.get_output(name)
        assert output.parameters["shared_memory_region"].string_param == "out"
        assert output.parameters["shared_memory_byte_size"].int64_param == TENSOR_BYTES
    assert not any(result.get_response().raw_output_contents)


@pytest.mark.parametrize("model", MODELS)
def test_inputs_in_shared_memory_are_answered_in_the_message(
    client: triton.InferenceServerClient, regions: dict[str, Any], model: str
) -> None:
    left, right = operands(ROWS, seed=1)
    shm.set_shared_memory_region(regions["in"], [left, right])
    check_add_sub(client.infer(model, shared_inputs()), left, right)


def test_one_input_may_be_shared_and_the_other_in_the_message(
    client: triton.InferenceServerClient, regions: dict[str, Any]
) -> None:
    left, right = operands(ROWS, seed=2)
    shm.set_shared_memory_region(regions["in"], [left])
    check_add_sub(client.infer("add_sub_pt2", [shared_inputs()[0], add_sub(left, right)[1]]), left, right)


def test_the_status_lists_what_is_registered(client: triton.InferenceServerClient, regions: dict[str, Any]) -> None:
    listed = client.get_system_shared_memory_status(as_json=True)["regions"]
    assert {name: entry["key"] for name, entry in listed.items()} == KEYS
    client.unregister_system_shared_memory("out")
    assert list(client.get_system_shared_memory_status().regions) == ["in"]


def test_what_does_not_fit_is_refused_and_says_the_sizes(
    client: triton.InferenceServerClient, regions: dict[str, Any]
) -> None:
    shm.set_shared_memory_region(regions["in"], list(operands(ROWS)))
    status, message = refusal(client.infer, "add_sub_pt2", shared_inputs(), "", shared_outputs(size=8))
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert f"takes {TENSOR_BYTES} bytes" in message
    beyond = shared_inputs()
    beyond[1].set_shared_memory("in", TENSOR_BYTES, offset=2 * TENSOR_BYTES)
    status, message = refusal(client.infer, "add_sub_pt2", beyond)
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert f"has {2 * TENSOR_BYTES} bytes" in message


def test_a_region_that_is_not_registered_is_not_found(client: triton.InferenceServerClient) -> None:
    status, message = refusal(client.infer, "add_sub_pt2", shared_inputs())
    assert (status, message) == ("StatusCode.NOT_FOUND", 'no shared memory region "in" is registered')


@pytest.mark.parametrize("key", ["/other_program", f"{SHARED_MEMORY_PREFIX}/../../etc/passwd", "/", ".."])
def test_keys_outside_the_prefix_are_refused(client: triton.InferenceServerClient, key: str) -> None:
    status, message = refusal(client.register_system_shared_memory, "mine", key, 8)
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert "expected a key" in message
    assert not client.get_system_shared_memory_status().regions


def test_a_server_that_does_not_enable_it_says_so(small_server: ServerProcess) -> None:
    with triton.InferenceServerClient(small_server.grpc) as client:
        assert "system_shared_memory" not in client.get_server_metadata().extensions
        for call, *arguments in (
            (client.register_system_shared_memory, "in", KEYS["in"], 8),
            (client.get_system_shared_memory_status,),
            (client.infer, "add_sub", shared_inputs()),
        ):
            status, message = refusal(call, *arguments)
            assert status == "StatusCode.FAILED_PRECONDITION"
            assert message == "system shared memory is switched off on this server; send tensors in the message"


def test_cuda_shared_memory_is_not_implemented_here(client: triton.InferenceServerClient) -> None:
    assert refusal(client.get_cuda_shared_memory_status)[0] == "StatusCode.UNIMPLEMENTED"
