"""The benchmark's models in KServe's model server.

`python -m benchmarks.runtimes.kserve_server GRPC_PORT HTTP_PORT NAME=FILE.pt2 ...`
"""

from __future__ import annotations

import sys

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

from benchmarks.runtimes.program import Program


class ProgramModel(Model):  # type: ignore[misc]
    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        self._program = Program(path)
        self.ready = True

    async def predict(
        self, payload: InferRequest, headers: object = None, response_headers: object = None
    ) -> InferResponse:
        result = self._program(payload.inputs[0].as_numpy())
        output = InferOutput("output", list(result.shape), "FP32")
        output.set_data_from_numpy(result, binary_data=True)
        return InferResponse(payload.id, self.name, [output])


if __name__ == "__main__":
    grpc_port, http_port, *models = sys.argv[1:]
    named = [model.split("=", 1) for model in models]
    server = ModelServer(grpc_port=int(grpc_port), http_port=int(http_port), enable_latency_logging=False)
    server.start([ProgramModel(name, path) for name, path in named])
