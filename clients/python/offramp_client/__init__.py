"""Call an Offramp server, or any other of the Open Inference Protocol, with numpy arrays in and out.

    import numpy as np
    import offramp_client

    with offramp_client.Client("localhost:8001") as client:
        result = client.infer("fashion", {"image": np.zeros((1, 1, 28, 28), np.float32)})
        print(result["logits"].argmax(), result.path)

`offramp_client.AsyncClient` (`offramp_client.aio.Client`) is the same with `await`. Errors are in
`offramp_client.errors`, all of them `OfframpError`. Neither torch nor the server is needed, nor imported.
"""

from open_inference.tensor import Tensor

from offramp_client import aio
from offramp_client.aio import Client as AsyncClient
from offramp_client.classification import Classification, ClassifyOptions, ClassScore
from offramp_client.client import Client
from offramp_client.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OfframpError,
    OutOfRange,
    PermissionDenied,
    ProtocolError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)
from offramp_client.inference import AnswerPath, InferRequest, InferResult
from offramp_client.metadata import (
    IndexEntry,
    ModelConfig,
    ModelMetadata,
    ServerMetadata,
    TensorInfo,
)
from offramp_client.options import CLIENT_DEFAULT, TLS, KeepAlive
from offramp_client.retry import RetryPolicy
from offramp_client.routes import Route, RouteChange, RouteModel, SettingChange
from offramp_client.statistics import BatchStatistics, Duration, MemoryUsage, ModelStatistics

__all__ = [
    "CLIENT_DEFAULT",
    "TLS",
    "Aborted",
    "AlreadyExists",
    "AnswerPath",
    "AsyncClient",
    "BatchStatistics",
    "Cancelled",
    "ClassScore",
    "Classification",
    "ClassifyOptions",
    "Client",
    "DataLoss",
    "DeadlineExceeded",
    "Duration",
    "FailedPrecondition",
    "IndexEntry",
    "InferRequest",
    "InferResult",
    "Internal",
    "InvalidArgument",
    "KeepAlive",
    "MemoryUsage",
    "ModelConfig",
    "ModelMetadata",
    "ModelStatistics",
    "NotFound",
    "OfframpError",
    "OutOfRange",
    "PermissionDenied",
    "ProtocolError",
    "ResourceExhausted",
    "RetryPolicy",
    "Route",
    "RouteChange",
    "RouteModel",
    "ServerMetadata",
    "SettingChange",
    "Tensor",
    "TensorInfo",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "aio",
]
