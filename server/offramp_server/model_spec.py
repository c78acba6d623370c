"""What a model is: plain data that the repository writes and every other layer reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from offramp_adapters.zero_shot.settings import ZeroShotSettings
from open_inference.tensor import BYTES

from offramp_server.preprocess.settings import Preprocess

VARIABLE = -1


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. `dims` leave out the batch dimension if the model batches; -1 is a variable dimension.

    `symbols` names variable dimensions that must agree between inputs (None: free); `ranges` bounds them, both
    parallel to `dims`. `source` is the name inside the model file where it differs from the public `name`. `utf8`: the
    model takes BYTES elements for text, and they have to be UTF-8.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    symbols: tuple[str | None, ...] = ()
    ranges: tuple[tuple[int, int] | None, ...] = ()
    labels: tuple[str, ...] = ()
    source: str = ""
    utf8: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.datatype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """`[engine]`. What may execute the model, and on what."""

    # auto | one of offramp_common.engine_names
    backend: str = "auto"
    # cpu | cuda | cuda:N | auto
    device: str = "auto"
    # fp32 | fp16 | bf16: what the engine computes in; the model's tensors keep their datatypes.
    precision: str = "fp32"
    # Worker processes that its device has at least. All of them hold all models of the device. 0: the server decides.
    instances: int = 0
    # Intra-op threads for each instance; 0 divides the machine's cores by the number of workers.
    threads: int = 0


@dataclass(frozen=True, slots=True)
class BatchingSettings:
    """`[batching]`."""

    # Items that may wait for this model before more are refused.
    max_queue_items: int = 512
    # Applies to a request that brings no deadline of its own; 0: none. Seconds.
    default_timeout: float = 0.0


@dataclass(frozen=True, slots=True)
class WarmupSettings:
    """`[warmup]`."""

    # Batch sizes that are run before the model counts as ready; empty: 1 and max_batch_size.
    batch_sizes: tuple[int, ...] = ()
    # What a variable dimension is while warming up.
    variable_dim: int = 8
    # Timed runs of each size; 0: no warm-up, for a model that cannot bear made-up inputs.
    iterations: int = 1


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One version of one model, as validated from its folder."""

    name: str
    version: int
    path: Path
    # pt2 | onnx
    format: str
    # Items in one batch; 0: the model has no batch dimension and runs one request at a time.
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    engine: EngineSettings = field(default_factory=EngineSettings)
    batching: BatchingSettings = field(default_factory=BatchingSettings)
    warmup: WarmupSettings = field(default_factory=WarmupSettings)
    # sha256 of the model file and its external data, for logs, metadata and caches.
    digest: str = ""
    size_bytes: int = 0
    # Whether the file computes in integers that stand for floats: engines may then differ by a quantum.
    quantized: bool = False
    # Free key-value pairs of model.toml's [metadata], shown in ModelConfig.
    metadata: Mapping[str, str] = field(default_factory=dict)
    # How `inputs` are made of what clients send; None: clients send them.
    preprocess: Preprocess | None = None
    # What makes a classifier of an encoder; None: clients get `outputs`.
    zero_shot: ZeroShotSettings | None = None

    @property
    def batches(self) -> bool:
        return self.max_batch_size > 0

    @property
    def public_inputs(self) -> tuple[TensorSpec, ...]:
        """What clients are told to send."""
        return self.inputs if self.preprocess is None else (TensorSpec(self.preprocess.input, BYTES, (1,)),)

    @property
    def public_outputs(self) -> tuple[TensorSpec, ...]:
        """What clients get."""
        head = self.zero_shot
        if head is None:
            return self.outputs
        # A request may bring any number of labels.
        return tuple(
            TensorSpec(name, "FP32", (VARIABLE,), labels=head.labels) for name in (head.logits, head.probabilities)
        )

    def fingerprint(self) -> str:
        """Changes with anything that changes what the model answers or how it is run."""
        return hashlib.sha256(repr(self).encode()).hexdigest()
