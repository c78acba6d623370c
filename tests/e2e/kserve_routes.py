"""Routes as a user of KServe's client calls them, in a process of its own (see kserve_calls.py). Prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from kserve import InferenceGRPCClient, InferInput, InferRequest
from route_models import ROUTES, ROWS


async def infer(client: InferenceGRPCClient, route: str, unit: str) -> dict[str, Any]:
    rows = InferInput(name="x", shape=list(ROWS.shape), datatype="FP32")
    rows.set_data_from_numpy(ROWS)
    request = InferRequest(model_name=route, infer_inputs=[rows], parameters={"offramp_unit": unit})
    response = await client.infer(request)
    [output] = response.outputs
    return {
        "ready": await client.is_model_ready(route),
        "name": response.model_name,
        "logits": output.as_numpy().tolist(),
        "parameters": {key: getattr(value, "string_param", value) for key, value in response.parameters.items()},
    }


async def main(address: str) -> list[dict[str, Any]]:
    async with InferenceGRPCClient(address, timeout=60) as client:
        return [await infer(client, route, unit) for route in ROUTES for unit in ("ana", "ben", "cy", "dee")]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1]))))
