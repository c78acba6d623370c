"""The items of one request, prepared one after the other, and what is said of one that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias

from offramp_common.text import quoted
from open_inference.tensor import Tensor, decode_bytes

from offramp_server.errors import InvalidRequest

# Whether nobody waits for the result any more.
Stop: TypeAlias = Callable[[], bool]


class Preprocessor(Protocol):
    """Makes a model's own tensors of what a client sends. Called from several threads at once."""

    def prepare(self, items: Tensor, stop: Stop, max_tensor_bytes: int) -> list[Tensor]:
        """`items` is BYTES[items, 1]; the tensors are in the order of the model's inputs, batch dimension first.

        Raises InvalidRequest, which names the item at fault, or says that a tensor would be larger than allowed, and
        Stopped once `stop` says so.
        """
        ...


class Stopped(Exception):
    """Given up in the middle, because nobody waits for the result."""


def elements(tensor: Tensor, max_bytes: int, stop: Stop) -> Iterator[tuple[int, bytes]]:
    """The items with their numbers. Raises InvalidRequest for one that is larger than allowed, and Stopped."""
    for index, element in enumerate(decode_bytes(tensor.data)):
        if stop():
            raise Stopped
        if len(element) > max_bytes:
            raise wrong(tensor, index, f"has {len(element)} bytes, this model takes at most {max_bytes}")
        yield index, element


def check_size(name: str, items: int, item_bytes: int, max_tensor_bytes: int) -> None:
    """Before a tensor is made that would be refused once it is there. Raises InvalidRequest."""
    if items * item_bytes > max_tensor_bytes:
        raise InvalidRequest(
            f"{items} items become {items * item_bytes} bytes of input {quoted(name)}, this server takes at most "
            f"{max_tensor_bytes}; send fewer at a time"
        )


def wrong(tensor: Tensor, index: int, what: str) -> InvalidRequest:
    """The error for one item. `what` goes on after its name."""
    return InvalidRequest(f"input {quoted(tensor.name)}, item {index}: {what}")
