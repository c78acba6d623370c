"""The benchmark's models in KServe's model server.

`python -m benchmarks.runtimes.kserve_server GRPC_PORT HTTP_PORT THREADS NAME=WHERE=FILE ...` computes on the event loop
(WHERE is `event-loop`) or on its pool, which has so many threads (`threads`).
"""

from __future__ import annotations

import asyncio
import sys

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

from benchmarks.runtimes.program import load_program


class ProgramModel(Model):  # type: ignore[misc]
    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        self._program = load_program(path)
        self.ready = True

    async def predict(
        self, payload: InferRequest, headers: object = None, response_headers: object = None
    ) -> InferResponse:
        return self._predict(payload)

    def _predict(self, payload: InferRequest) -> InferResponse:
        result = self._program(payload.inputs[0].as_numpy())
        output = InferOutput("output", list(result.shape), "FP32")
        output.set_data_from_numpy(result, binary_data=True)
        return InferResponse(payload.id, self.name, [output])


class ThreadedModel(ProgramModel):
    async def predict(
        self, payload: InferRequest, headers: object = None, response_headers: object = None
    ) -> InferResponse:
        return await asyncio.get_running_loop().run_in_executor(None, self._predict, payload)


if __name__ == "__main__":
    grpc_port, http_port, threads, *models = sys.argv[1:]
    kinds = {"event-loop": ProgramModel, "threads": ThreadedModel}
    server = ModelServer(
        grpc_port=int(grpc_port),
        http_port=int(http_port),
        max_asyncio_workers=int(threads) or None,
        enable_latency_logging=False,
    )
    named = [model.split("=", 2) for model in models]
    server.start([kinds[where](name, file) for name, where, file in named])
