"""Is an engine's answer what the model's spec promises? Asked for every output of every batch, by every engine."""

from __future__ import annotations

from collections.abc import Sequence

from open_inference.tensor import Tensor

from offramp_server.errors import ModelFailed
from offramp_server.model_spec import VARIABLE, ModelSpec, TensorSpec


def batch_size(spec: ModelSpec, inputs: Sequence[Tensor]) -> int | None:
    """Items in this batch; None for a model without a batch dimension."""
    return inputs[0].shape[0] if spec.batches and inputs else None


def check_count(spec: ModelSpec, count: int) -> None:
    """Raises ModelFailed where the model answered with more or fewer outputs than declared."""
    if count != len(spec.outputs):
        raise ModelFailed(
            f'model "{spec.name}": expected {len(spec.outputs)} outputs, it answered {count}; '
            "[[outputs]] of model.toml has to list every result of the model"
        )


def check_output(spec: ModelSpec, output: TensorSpec, datatype: str, shape: tuple[int, ...], batch: int | None) -> None:
    """Raises ModelFailed with what was declared and what came. Rows of a wrong shape would reach the wrong caller."""
    expected = output.dims if batch is None else (batch, *output.dims)
    if datatype == output.datatype and (shape == expected or _matches(shape, expected)):
        return
    raise ModelFailed(
        f'model "{spec.name}", output "{output.name}": expected {_describe(output.datatype, expected)}, '
        f"the model answered {_describe(datatype, shape)}"
    )


def _matches(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(
        want in (VARIABLE, got) for got, want in zip(shape, expected, strict=True)
    )


def _describe(datatype: str, shape: tuple[int, ...]) -> str:
    return f"{datatype}[{','.join(map(str, shape))}]"
