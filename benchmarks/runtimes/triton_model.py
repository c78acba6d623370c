"""The benchmark's model for Triton's Python backend: model.py imports `TritonPythonModel` from here.

One execution gets the requests of a dynamic batch; they run as one batch.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

from benchmarks.runtimes.program import load_program


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self._program = load_program(parameters["program"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        inputs = [pb_utils.get_input_tensor_by_name(request, "input").as_numpy() for request in requests]
        batch = inputs[0] if len(inputs) == 1 else np.concatenate(inputs)
        ends = np.cumsum([len(items) for items in inputs])[:-1]
        return [self._response(part) for part in np.split(self._program(batch), ends)]

    def _response(self, result: Any) -> Any:
        return pb_utils.InferenceResponse([pb_utils.Tensor("output", np.ascontiguousarray(result))])
