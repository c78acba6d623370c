"""What a user of KServe's client does, in a process of its own: it and tritonclient both register package `inference`
in protobuf's default pool, so one process holds either. Prints what it got as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
import numpy as np
import offramp_server.app  # noqa: F401 - that it can be imported beside kserve is what is shown
from kserve import InferenceGRPCClient, InferInput, InferRequest
from offramp_client import aio

WIDTH = 16


def operands() -> tuple[Any, Any]:
    left = np.arange(2 * WIDTH, dtype=np.int32).reshape(2, WIDTH)
    return left, left[::-1] * 3


async def infer(client: InferenceGRPCClient, model: str, binary: bool) -> dict[str, Any]:
    inputs = []
    for name, values in zip(("INPUT0", "INPUT1"), operands(), strict=True):
        entry = InferInput(name=name, shape=list(values.shape), datatype="INT32")
        entry.set_data_from_numpy(values, binary_data=binary)
        inputs.append(entry)
    request = InferRequest(model_name=model, infer_inputs=inputs, request_id="mine", parameters={"note": "a", "n": 1})
    response = await client.infer(request)
    return {
        "id": response.id,
        "model": response.model_name,
        "outputs": {output.name: output.as_numpy().tolist() for output in response.outputs},
    }


async def status_of(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def main(address: str) -> dict[str, Any]:
    left, right = operands()
    found: dict[str, Any] = {"expected": {"OUTPUT0": (left + right).tolist(), "OUTPUT1": (left - right).tolist()}}
    async with InferenceGRPCClient(address, timeout=60) as client, aio.Client(address, timeout=60) as ours:
        found["live"] = await client.is_server_live()
        found["ready"] = await client.is_server_ready()
        found["model_ready"] = {name: await client.is_model_ready(name) for name in ("add_sub_pt2", "nobody")}
        for model in ("add_sub_pt2", "add_sub_onnx"):
            for binary in (True, False):
                found[f"{model} {'raw' if binary else 'typed'}"] = await infer(client, model, binary)
        found["unknown"] = await status_of(infer(client, "nobody", True))
        result = await ours.infer("add_sub_onnx", {"INPUT0": left, "INPUT1": right})
        found["ours"] = {name: result[name].tolist() for name in ("OUTPUT0", "OUTPUT1")}
    found["modules"] = [name for name in ("kserve", "offramp_client", "offramp_server.app") if name in sys.modules]
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1]))))
