"""Tensors in shared memory: tritonclient's way, and every way to abuse it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from offramp_server.errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound
from offramp_server.rpc.services import RpcSettings
from offramp_server.rpc.shared_memory import MAX_REGIONS, SharedMemory, SharedMemorySettings
from rpc_fakes import Running, running
from tritonclient.utils import InferenceServerException, shared_memory

ENABLED = SharedMemorySettings(enabled=True)


@pytest.fixture
def regions(tmp_path: Path) -> SharedMemory:
    """Over a folder that stands in for /dev/shm, with one object of 64 bytes in it."""
    (tmp_path / "object").write_bytes(bytes(range(64)))
    return SharedMemory(ENABLED, tmp_path)


def test_a_region_is_a_span_of_an_object(regions: SharedMemory, tmp_path: Path) -> None:
    regions.register("r", "/object", 16, 32)
    region = regions.region("r")

    assert region.read(0, 32) == bytes(range(16, 48))
    assert region.read(30, 2) == bytes([46, 47])
    region.write(4, b"abc")
    assert (tmp_path / "object").read_bytes()[20:23] == b"abc"
    [status] = regions.status("r")
    assert (status.name, status.key, status.offset, status.byte_size) == ("r", "/object", 16, 32)


@pytest.mark.parametrize(("offset", "size"), [(0, 33), (32, 1), (-1, 2), (0, -1), (2**63, 1), (1, 2**64)])
def test_a_span_outside_the_region_is_refused(regions: SharedMemory, offset: int, size: int) -> None:
    regions.register("r", "/object", 0, 32)

    with pytest.raises(InvalidRequest, match='region "r" has 32 bytes, expected a span inside it'):
        regions.region("r").read(offset, size)


def test_a_write_outside_the_region_is_refused_and_writes_nothing(regions: SharedMemory, tmp_path: Path) -> None:
    regions.register("r", "/object", 0, 32)

    with pytest.raises(InvalidRequest, match="expected a span inside it, got offset 30 and size 3"):
        regions.region("r").write(30, b"abc")
    assert (tmp_path / "object").read_bytes() == bytes(range(64))


@pytest.mark.parametrize(("offset", "size"), [(0, 65), (64, 1), (2**64 - 1, 2**64 - 1), (33, 32)])
def test_a_region_beyond_its_object_is_refused(regions: SharedMemory, offset: int, size: int) -> None:
    with pytest.raises(InvalidRequest, match="offset plus size to be at most the size of the object"):
        regions.register("r", "/object", offset, size)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "..",
        "/..",
        "/.",
        "/a/b",
        "/../object",
        "object/",
        "//object",
        "/obj ect",
        "/obj\0",
        "/ö",
        "/" + "x" * 300,
    ],
)
def test_keys_that_could_lead_elsewhere_are_refused(regions: SharedMemory, key: str) -> None:
    with pytest.raises(InvalidRequest, match="expected a key of a slash and letters"):
        regions.register("r", key, 0, 1)


def test_links_pipes_and_folders_are_no_shared_memory(regions: SharedMemory, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "object")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")

    for key in ("/link", "/folder", "/absent"):
        with pytest.raises(NotFound, match=f'there is no usable object "{key}"'):
            regions.register("r", key, 0, 1)
    with pytest.raises(InvalidRequest, match="size of the object"):
        regions.register("r", "/pipe", 0, 1)


def test_only_keys_of_the_chosen_prefix_are_opened(tmp_path: Path) -> None:
    (tmp_path / "ours_1").write_bytes(b"1")
    (tmp_path / "theirs").write_bytes(b"1")
    regions = SharedMemory(SharedMemorySettings(enabled=True, key_prefix="/ours_"), tmp_path)

    regions.register("r", "/ours_1", 0, 1)
    with pytest.raises(InvalidRequest, match='expected a key that begins with "/ours_", got "/theirs"'):
        regions.register("s", "/theirs", 0, 1)


def test_names_are_taken_once_and_free_after_unregistering(regions: SharedMemory) -> None:
    regions.register("r", "object", 0, 1)
    with pytest.raises(AlreadyExists, match='region "r" is registered already; unregister it first'):
        regions.register("r", "/object", 0, 1)

    regions.unregister("r")
    regions.unregister("r")
    regions.register("r", "/object", 0, 1)
    regions.register("s", "/object", 0, 1)
    regions.unregister("")

    assert list(regions.status("")) == []
    with pytest.raises(NotFound, match='no shared memory region "r" is registered'):
        regions.status("r")


@pytest.mark.parametrize(("name", "size"), [("", 1), ("r", 0)])
def test_a_region_has_a_name_and_a_size(regions: SharedMemory, name: str, size: int) -> None:
    with pytest.raises(InvalidRequest):
        regions.register(name, "/object", 0, size)


def test_there_is_a_limit_of_regions_and_refusals_leak_no_descriptors(regions: SharedMemory) -> None:
    for index in range(MAX_REGIONS):
        regions.register(f"r{index}", "/object", 0, 1)
    open_files = len(os.listdir("/proc/self/fd"))

    with pytest.raises(FailedPrecondition, match="which is the limit"):
        regions.register("one-more", "/object", 0, 1)
    regions.unregister("r0")
    for _ in range(50):
        with pytest.raises(InvalidRequest):
            regions.register("r0", "/object", 0, 65)

    assert len(os.listdir("/proc/self/fd")) == open_files - 1


def test_an_object_that_its_client_shortens_is_an_error_and_no_crash(regions: SharedMemory, tmp_path: Path) -> None:
    regions.register("r", "/object", 0, 64)
    region = regions.region("r")
    os.truncate(tmp_path / "object", 10)

    with pytest.raises(FailedPrecondition, match='region "r" is shorter than when it was registered'):
        region.read(0, 64)
    with pytest.raises(FailedPrecondition, match="is shorter"):
        region.write(8, b"abc")
    assert (tmp_path / "object").stat().st_size == 10
    assert region.read(0, 10) == bytes(range(10))


def test_an_object_that_its_client_removes_stays_usable(regions: SharedMemory, tmp_path: Path) -> None:
    regions.register("r", "/object", 0, 64)
    (tmp_path / "object").unlink()

    regions.region("r").write(0, b"abc")
    assert regions.region("r").read(0, 3) == b"abc"


def test_unregistering_takes_nothing_from_a_request_under_way(regions: SharedMemory, tmp_path: Path) -> None:
    regions.register("r", "/object", 0, 64)
    region = regions.region("r")
    regions.unregister("r")
    # Would be the same number if the descriptor had been closed.
    with (tmp_path / "other").open("wb"):
        region.write(0, b"abc")

    assert (tmp_path / "other").read_bytes() == b""
    assert (tmp_path / "object").read_bytes()[:3] == b"abc"


def test_switched_off_means_off(tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(b"1")
    regions = SharedMemory(SharedMemorySettings(), tmp_path)

    for call in (
        lambda: regions.register("r", "/object", 0, 1),
        lambda: regions.unregister(""),
        lambda: regions.status(""),
        lambda: regions.region("r"),
    ):
        with pytest.raises(FailedPrecondition, match="switched off on this server; send tensors in the message"):
            call()


# On the wire


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running(RpcSettings("1", shared_memory=ENABLED)) as server:
        yield server


@pytest.fixture
async def client(server: Running) -> AsyncIterator[triton_aio.InferenceServerClient]:
    async with triton_aio.InferenceServerClient(server.address) as client:
        yield client


@pytest.fixture
def key() -> str:
    return f"/offramp_test_{uuid4().hex}"


@pytest.fixture
def handle(key: str) -> Iterator[Any]:
    """128 bytes of shared memory as tritonclient makes it."""
    handle = shared_memory.create_shared_memory_region("r", key, 128, create_only=True)
    yield handle
    shared_memory.destroy_shared_memory_region(handle)


async def test_tritonclient_sends_and_receives_through_shared_memory(
    client: triton_aio.InferenceServerClient, handle: Any, key: str
) -> None:
    values = np.array([[1.5, 2.5]], dtype=np.float32)
    shared_memory.set_shared_memory_region(handle, [values], offset=8)
    await client.register_system_shared_memory("r", key, 128)
    tensor = triton.InferInput("x", [1, 2], "FP32")
    tensor.set_shared_memory("r", 8, offset=8)
    output = triton.InferRequestedOutput("y")
    output.set_shared_memory("r", 16, offset=64)

    result = await client.infer("echo", [tensor], outputs=[output])

    described = result.get_output("y")
    np.testing.assert_array_equal(shared_memory.get_contents_as_numpy(handle, np.float32, [1, 2], 64), values)
    assert (described.datatype, list(described.shape)) == ("FP32", [1, 2])
    assert described.parameters["shared_memory_region"].string_param == "r"
    assert described.parameters["shared_memory_byte_size"].int64_param == 8
    assert described.parameters["shared_memory_offset"].int64_param == 64
    status = await client.get_system_shared_memory_status(as_json=True)
    assert status["regions"]["r"] == {"name": "r", "key": key, "byte_size": "128"}


async def test_shared_and_sent_tensors_mix(client: triton_aio.InferenceServerClient, handle: Any, key: str) -> None:
    left = np.arange(16, dtype=np.int32).reshape(1, 16)
    shared_memory.set_shared_memory_region(handle, [left])
    await client.register_system_shared_memory("r", key, 128)
    inputs = [triton.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    inputs[0].set_shared_memory("r", 64)
    inputs[1].set_data_from_numpy(np.ones_like(left))
    outputs = [triton.InferRequestedOutput(name) for name in ("OUTPUT0", "OUTPUT1")]
    outputs[0].set_shared_memory("r", 64, offset=64)

    result = await client.infer("simple", inputs, outputs=outputs)

    # tritonclient counts raw entries by the position of the output.
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), left - 1)
    np.testing.assert_array_equal(shared_memory.get_contents_as_numpy(handle, np.int32, [1, 16], 64), left + 1)


async def failure(call: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        await call
    return str(caught.value.status()), caught.value.message()


async def test_an_output_that_does_not_fit_is_refused(
    client: triton_aio.InferenceServerClient, handle: Any, key: str
) -> None:
    await client.register_system_shared_memory("r", key, 128)
    tensor = triton.InferInput("x", [1, 2], "FP32")
    tensor.set_shared_memory("r", 8)
    output = triton.InferRequestedOutput("y")
    output.set_shared_memory("r", 4)

    status, message = await failure(client.infer("echo", [tensor], outputs=[output]))

    assert status == "StatusCode.INVALID_ARGUMENT"
    assert message == 'output "y" takes 8 bytes, the shared memory given for it has 4'


async def test_requests_with_regions_that_are_not_there_are_refused(
    client: triton_aio.InferenceServerClient, handle: Any, key: str
) -> None:
    await client.register_system_shared_memory("r", key, 128)
    unknown, outside = (triton.InferInput("x", [1, 2], "FP32") for _ in range(2))
    unknown.set_shared_memory("nothing", 8)
    outside.set_shared_memory("r", 8, offset=124)

    assert (await failure(client.infer("echo", [unknown])))[0] == "StatusCode.NOT_FOUND"
    status, message = await failure(client.infer("echo", [outside]))
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert message == 'shared memory region "r" has 128 bytes, expected a span inside it, got offset 124 and size 8'


async def test_no_message_names_a_file_of_the_server(client: triton_aio.InferenceServerClient) -> None:
    status, message = await failure(client.register_system_shared_memory("r", "/absent_object", 1))

    assert status == "StatusCode.NOT_FOUND"
    assert message == 'shared memory region "r": there is no usable object "/absent_object"'


async def test_the_extension_is_advertised_only_where_it_is_on(client: triton_aio.InferenceServerClient) -> None:
    assert "system_shared_memory" in (await client.get_server_metadata()).extensions
    async with running() as off, triton_aio.InferenceServerClient(off.address) as other:
        status, message = await failure(other.register_system_shared_memory("r", "/x", 1))

    assert status == "StatusCode.FAILED_PRECONDITION"
    assert message == "system shared memory is switched off on this server; send tensors in the message"
