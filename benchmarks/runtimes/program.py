"""A model file as every server of the benchmark runs it: with one compute thread, by the engine its suffix names.

`.pt2` runs in torch eager, `.onnx` in ONNX Runtime. Neither library is imported for the other's files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

COMPUTE_THREADS = 1

# float32 [N, ...] to float32 [N, ...]
Program = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def load_program(path: Path | str) -> Program:
    """Load a `.pt2` or `.onnx` file. Raises ValueError for any other."""
    loaders = {".pt2": load_exported, ".onnx": load_onnx}
    suffix = Path(path).suffix
    if suffix not in loaders:
        raise ValueError(f"{path}: expected a file that ends in {' or '.join(loaders)}")
    return loaders[suffix](str(path))


def load_exported(path: str) -> Program:
    import torch

    torch.set_num_threads(COMPUTE_THREADS)
    module = torch.export.load(path).module()

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        # Arrays that are views of a network buffer are read-only, which from_numpy warns about.
        array = batch if batch.flags.writeable else batch.copy()
        with torch.inference_mode():
            result: NDArray[np.float32] = module(torch.from_numpy(array)).numpy()
        return result

    return run


def load_onnx(path: str) -> Program:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = COMPUTE_THREADS
    options.inter_op_num_threads = 1
    # As Offramp sets it: idle threads that spin take CPU from the server around the model.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = session.run(None, {name: batch})[0]
        return result

    return run
