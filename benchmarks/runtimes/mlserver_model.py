"""The benchmark's model as an MLServer custom runtime; `parameters.uri` in model-settings.json names the .pt2 file."""

from __future__ import annotations

from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]

from benchmarks.runtimes.program import load_program


class ProgramModel(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        self._program = load_program(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        result = self._program(NumpyCodec.decode_input(payload.inputs[0]))
        output = NumpyCodec.encode_output("output", result)
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])
