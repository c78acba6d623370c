"""What importing the SDK brings along, and who may be in the process with it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

BOTH_REQUESTS = """
import {first}
import {second}
import offramp_client
from offramp_client.inference import encode
payload = encode(offramp_client.InferRequest("m", {{"x": [1.5]}}))
theirs = {messages}.ModelInferRequest.FromString(payload)
assert theirs.model_name == "m" and theirs.inputs[0].datatype == "FP64", theirs
"""


def run(code: str) -> str:
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_importing_the_client_loads_neither_torch_nor_the_server() -> None:
    loaded = run("import offramp_client, sys; print(*{name.split('.')[0] for name in sys.modules})").split()

    assert "offramp_client" in loaded
    assert not {"torch", "offramp_server", "offramp_adapters", "onnxruntime", "aiohttp", "ml_dtypes"} & set(loaded)


@pytest.mark.parametrize(
    ("first", "second"), [("offramp_client", "tritonclient.grpc"), ("tritonclient.grpc", "offramp_client")]
)
def test_it_lives_in_one_process_with_tritonclient(first: str, second: str) -> None:
    run(BOTH_REQUESTS.format(first=first, second=second, messages="tritonclient.grpc.service_pb2"))


@pytest.mark.skipif(importlib.util.find_spec("kserve") is None, reason="kserve is not installed")
def test_it_lives_in_one_process_with_kserves_client() -> None:
    messages = "kserve.protocol.grpc.grpc_predict_v2_pb2"
    run(BOTH_REQUESTS.format(first="offramp_client", second=messages, messages=messages))


def test_every_public_name_is_there_and_documented() -> None:
    import offramp_client

    for name in offramp_client.__all__:
        value = getattr(offramp_client, name)
        assert value.__doc__ or name == "CLIENT_DEFAULT", name


def test_hpack_is_only_for_who_wants_the_native_transport() -> None:
    without = "import sys; sys.modules['hpack'] = None; import offramp_client; "
    run(without + "offramp_client.Client().close()")
    said = run(
        without + "from offramp_common.extras import MissingExtra\n"
        "try: offramp_client.Client(transport='native')\n"
        "except MissingExtra as error: print(error)"
    )
    assert said.startswith('transport="native" needs hpack')
    assert "pip install 'offramp[native]'" in said


def test_an_unknown_transport_is_refused() -> None:
    import offramp_client

    with pytest.raises(ValueError, match='transport "http3": expected "grpcio" or "native"'):
        offramp_client.AsyncClient(transport="http3")  # type: ignore[arg-type]
