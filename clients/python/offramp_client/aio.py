"""The asyncio client: `offramp_client.Client` with `await`.

async with offramp_client.aio.Client("localhost:8001") as client:
    result = await client.infer("fashion", {"image": image})
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar, Unpack, overload

import grpc
import grpc.aio

from offramp_client._base import LOAD_TIMEOUT, BaseClient
from offramp_client._connection import FAILURES, typed_error
from offramp_client._plans import Done, Outcome, Pause, Plan, Step, Watch, proceed
from offramp_client.classification import Classification, ClassifyOptions, Images, Texts, read_items
from offramp_client.errors import Cancelled, Internal, OfframpError, from_status
from offramp_client.inference import InferRequest, InferResult, ParameterValue, TensorLike
from offramp_client.metadata import IndexEntry, ModelConfig, ModelMetadata, ServerMetadata
from offramp_client.options import CLIENT_DEFAULT, Timeout
from offramp_client.pictures import Image
from offramp_client.retry import check_timeout
from offramp_client.routes import Route, RouteChange, reset_request, update_request
from offramp_client.statistics import ModelStatistics

T = TypeVar("T")


class Client(BaseClient):
    """An asyncio client of one server, for one event loop. It may be made outside of it, and is used and closed inside.

    Cancelling the awaiting task cancels the call, on the server too. In all else it is as `offramp_client.Client`.
    """

    # Made with the first call: grpc.aio binds a channel to the event loop that is running then.
    _channel: Any = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what is in flight and give the connection back. A second time does nothing."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, TensorLike],
        *,
        version: str = "",
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, ParameterValue] | None = None,
        priority: int | None = None,
        request_id: str | None = None,
        unit: str | None = None,
        route: str | None = None,
        max_exit: str | int | None = None,
        min_confidence: float | None = None,
        cast: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> InferResult:
        """Run a model or a route on `inputs`, arrays by the names of the inputs.

        Args:
            model: the name of a model or of a route.
            inputs: arrays in the declared shapes, batch dimension first. The array's own type travels (float32 as
                FP32, strings as BYTES); a `Tensor` for types that numpy has not (`Tensor.from_numpy(..., "BF16")`).
            version: of a model; empty: the server chooses.
            outputs: the names of the wanted outputs; None: all.
            parameters: further request parameters, sent as they are.
            priority: lower is sooner; None: the server's default.
            request_id: comes back as the answer's `id`.
            unit: the sticky key of A/B routes, for instance a user id.
            route: another path than the route's default, "model:NAME" for example.
            max_exit: the last exit of an early-exit route that may be asked, by its name or number.
            min_confidence: how sure an exit of such a route has to be for this request, from 0 to 1.
            cast: convert the inputs to the datatypes that the model declares, so that Python lists will do. Asks the
                server for them once. Integers have to fit; floating point is rounded.
            timeout: seconds for all attempts; None: no limit.

        Raises:
            InvalidArgument: a name, datatype, shape or length is not what the model takes.
            NotFound: no such model, version or route.
            ResourceExhausted: the server is overloaded (see `retry_after`); never tried again by itself.
            DeadlineExceeded: no answer in time.
            ValueError, TypeError: the arguments cannot be sent as they are.
        """
        request = InferRequest(
            model, inputs, version, outputs, parameters, priority, request_id=request_id,
            unit=unit, route=route, max_exit=max_exit, min_confidence=min_confidence,
        )  # fmt: skip
        return await self._run(self._plans.infer(request, cast=cast, timeout=timeout))

    @overload
    async def classify(self, model: str, *, text: str, **options: Unpack[ClassifyOptions]) -> Classification: ...

    @overload
    async def classify(
        self, model: str, *, text: Texts, **options: Unpack[ClassifyOptions]
    ) -> list[Classification]: ...

    @overload
    async def classify(self, model: str, *, image: Image, **options: Unpack[ClassifyOptions]) -> Classification: ...

    @overload
    async def classify(
        self, model: str, *, image: Images, **options: Unpack[ClassifyOptions]
    ) -> list[Classification]: ...

    async def classify(
        self,
        model: str,
        *,
        text: str | Texts | None = None,
        image: Image | Images | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> Classification | list[Classification]:
        """The best classes of a text or a picture, or of several: a list or tuple gives a list of answers.

        The model has to take BYTES, as one with [preprocess] does; its server is asked once for how. A list that is
        longer than the model's largest batch goes in several requests.

            (await client.classify("reviews", text="A good film")).label
            [answer.score for answer in await client.classify("fashion", image=["boot.png", pixels])]

        Args:
            model: the name of a model or of a route.
            text: one text or several.
            image: one picture or several: a JPEG or PNG file's bytes or path, an array of pixels (uint8, [height,
                width] or with channels last), or a Pillow image.
            options: `top_k` classes of each (5), `labels` in place of the model's own for a zero-shot model, `output`
                to take the scores from; `version`, `priority`, `request_id`, `unit`, `route`, `max_exit`,
                `min_confidence`, `timeout` as of `infer`.

        Raises:
            InvalidArgument: the model takes no text or no pictures, or one of these cannot be read (item by number).
            NotFound, ResourceExhausted, DeadlineExceeded: as `infer`.
            ValueError, TypeError, OSError: the arguments cannot be sent as they are, or a file cannot be read.
        """
        items = read_items(text, image)
        answers = await self._run(self._plans.classify(model, items, options))
        return answers[0] if items.single else answers

    def infer_stream(
        self, requests: AsyncIterable[InferRequest] | Iterable[InferRequest], *, timeout: float | None = None
    ) -> AsyncIterator[InferResult]:
        """Send many requests over one call; their answers come in the same order, while requests are still taken.

        A request that fails does not end the stream: its result has `error` set, and raises it when its outputs are
        asked for. An error of the stream itself is raised; nothing is tried again, since the answers already given
        cannot be taken back. An exception raised by `requests`, or by a request that cannot be sent, is raised here
        after the answers to the requests before it.

        `timeout` is for the whole stream. The time of a single request is limited by its own `timeout`, by default
        the client's, which the server watches.
        """
        self._check_open()
        check_timeout(timeout)
        return self._stream(requests, timeout)

    async def server_metadata(self, *, timeout: Timeout = CLIENT_DEFAULT) -> ServerMetadata:
        """The server's name, version and extensions."""
        return await self._run(self._plans.server_metadata(timeout))

    async def is_live(self, *, timeout: Timeout = CLIENT_DEFAULT) -> bool:
        """Whether the server answers at all. False if it cannot be reached; not tried again."""
        return await self._run(self._plans.is_live(timeout))

    async def is_ready(self, *, timeout: Timeout = CLIENT_DEFAULT) -> bool:
        """Whether the server takes requests. False while it starts or drains, and if it cannot be reached."""
        return await self._run(self._plans.is_ready(timeout))

    async def is_model_ready(self, name: str, version: str = "", *, timeout: Timeout = CLIENT_DEFAULT) -> bool:
        """Whether a model or route can answer now. False also if the server cannot be reached."""
        return await self._run(self._plans.is_model_ready(name, version, timeout))

    async def wait_until_ready(
        self, model: str | None = None, version: str = "", *, timeout: float | None = 60.0
    ) -> None:
        """Return once the server, or one of its models or routes, takes requests. It need not be listening yet.

        Raises DeadlineExceeded with the last reason after `timeout` seconds, and every other error at once: NotFound
        for a name that the server does not know, Unauthenticated for a wrong token.
        """
        await self._run(self._plans.wait_until_ready(model, version, timeout))

    async def model_metadata(self, name: str, version: str = "", *, timeout: Timeout = CLIENT_DEFAULT) -> ModelMetadata:
        """The inputs and outputs of a model or route. Raises NotFound."""
        return await self._run(self._plans.model_metadata(name, version, timeout))

    async def model_config(self, name: str, version: str = "", *, timeout: Timeout = CLIENT_DEFAULT) -> ModelConfig:
        """How a model is served: its engine, batch size and instances. Raises NotFound."""
        return await self._run(self._plans.model_config(name, version, timeout))

    async def model_statistics(
        self, name: str = "", version: str = "", *, timeout: Timeout = CLIENT_DEFAULT
    ) -> list[ModelStatistics]:
        """Counts and times of one model, or of all if `name` is empty. Raises NotFound."""
        return await self._run(self._plans.model_statistics(name, version, timeout))

    async def repository_index(self, *, ready: bool = False, timeout: Timeout = CLIENT_DEFAULT) -> list[IndexEntry]:
        """Every version of every model in the repository with its state; with `ready`, only those that can answer."""
        return await self._run(self._plans.repository_index(ready, timeout))

    async def load_model(self, name: str, *, timeout: Timeout = LOAD_TIMEOUT) -> None:
        """Load a model, or its new versions, and return when it answers. Needs the role `admin`.

        Not tried again: from UNAVAILABLE one cannot tell whether the server had begun, and beginning once more would
        compile and warm up once more. Raises NotFound, FailedPrecondition if the model does not load.
        """
        await self._run(self._plans.load_model(name, timeout))

    async def unload_model(self, name: str, *, timeout: Timeout = LOAD_TIMEOUT) -> None:
        """Take a model out of service after what it is working on. Needs the role `admin`.

        Not tried again, as `load_model` is not: a second attempt might find nothing to unload. Raises NotFound.
        """
        await self._run(self._plans.unload_model(name, timeout))

    async def routes(self, *, timeout: Timeout = CLIENT_DEFAULT) -> list[Route]:
        """All routes, in the order of their names. Raises Unimplemented where the server is not Offramp."""
        return await self._run(self._plans.list_routes(timeout))

    async def route(self, name: str, *, timeout: Timeout = CLIENT_DEFAULT) -> Route:
        """One route. Raises NotFound, or Unimplemented where the server is not Offramp."""
        return await self._run(self._plans.get_route(name, timeout))

    async def update_route(
        self,
        name: str,
        settings: Mapping[str, float] | None = None,
        *,
        reset: Iterable[str] = (),
        etag: str | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Route:
        """Change settings of a route for the requests that come from now on, all of them or none.

        The change outlasts restarts of the server, until route.toml is changed. Needs the role `admin`.

            route = client.route("fashion")
            client.update_route("fashion", {"threshold.student": 0.9}, etag=route.etag)

        Args:
            name: of the route.
            settings: new values by key; settings that are not named stay as they are.
            reset: keys that go back to what route.toml says.
            etag: of the route as it was when you decided; None: make the change whatever was there. With an etag
                nothing is tried again, as a second attempt would collide with a first one whose answer was lost.
            validate_only: only check, and return what the route would be.

        Raises:
            Aborted: the route has another etag by now. Read it again, and decide again.
            InvalidArgument: the route has no such setting, or it cannot have that value.
            NotFound, FailedPrecondition: there is no such route, or it is not ready.
            ValueError: nothing to change, or a key both set and reset.
        """
        request = update_request(name, settings or {}, reset, etag, validate_only)
        return await self._run(self._plans.update_route(request, timeout))

    async def reset_route(self, name: str, *, etag: str | None = None, timeout: Timeout = CLIENT_DEFAULT) -> Route:
        """Take every setting of a route back to what route.toml says. Raises as `update_route`."""
        return await self._run(self._plans.update_route(reset_request(name, etag), timeout))

    async def route_changes(
        self, name: str, *, limit: int | None = None, timeout: Timeout = CLIENT_DEFAULT
    ) -> list[RouteChange]:
        """What was changed of a route while it ran, the latest first, at most `limit`. Needs the role `admin`."""
        return await self._run(self._plans.route_changes(name, limit, timeout))

    def watch_route(self, name: str, *, timeout: float | None = None) -> AsyncIterator[Route]:
        """The route as it is, and again after each change. States that nobody had time to read are skipped.

        It goes on until you stop reading, or for `timeout` seconds (DeadlineExceeded). Raises NotFound if there is no
        such route or it goes, Unavailable if the server drains or is lost: watch again then.
        """
        return self._watch(self._plans.watch_route(name), timeout)

    def watch_routes(self, *, timeout: float | None = None) -> AsyncIterator[Mapping[str, Route]]:
        """All routes by their names, now and after each change; else as `watch_route`."""
        return self._watch(self._plans.watch_routes(), timeout)

    def _watch(self, watch: Watch[T], timeout: float | None) -> AsyncIterator[T]:
        self._check_open()
        check_timeout(timeout)
        return self._answers(watch, timeout)

    async def _answers(self, watch: Watch[T], timeout: float | None) -> AsyncIterator[T]:
        call = self._call(watch.method.path)(watch.payload, timeout=timeout, metadata=self._connection.metadata)
        try:
            async for answer in call:
                yield watch.read(answer)
        except FAILURES as error:
            raise typed_error(error) from error
        except asyncio.CancelledError as error:
            self._raise_if_closed(error)
            raise
        finally:
            # For a caller who stops listening; after the end it does nothing.
            call.cancel()

    async def _stream(
        self, requests: AsyncIterable[InferRequest] | Iterable[InferRequest], timeout: float | None
    ) -> AsyncIterator[InferResult]:
        failures: list[Exception] = []
        call = self._call(self._plans.stream.path)(
            self._payloads(requests, failures), timeout=timeout, metadata=self._connection.metadata
        )
        ending = _Ending(call) if isinstance(call, grpc.aio.Call) else None
        try:
            async for payload in call:
                yield self._plans.decode_streamed(payload)
        except FAILURES as error:
            raise (ending.explain(error) if ending else typed_error(error)) from error
        except asyncio.CancelledError as error:
            self._raise_if_closed(error)
            raise
        finally:
            # For a caller who stops listening; after the end it does nothing.
            call.cancel()
        for failure in failures:
            raise failure

    async def _payloads(
        self, requests: AsyncIterable[InferRequest] | Iterable[InferRequest], failures: list[Exception]
    ) -> AsyncIterator[bytes]:
        try:
            if isinstance(requests, AsyncIterable):
                async for request in requests:
                    yield self._plans.encode_streamed(request)
            else:
                for request in requests:
                    yield self._plans.encode_streamed(request)
        except Exception as error:
            # Raised in gRPC's task it would only be logged.
            failures.append(error)

    async def _run(self, plan: Plan[T]) -> T:
        self._check_open()
        step = proceed(plan, None)
        while not isinstance(step, Done):
            step = proceed(plan, await self._carry_out(step))
        return step.result

    async def _carry_out(self, step: Step) -> Outcome:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        call = self._call(step.method.path)
        try:
            answer: bytes = await call(step.payload, timeout=step.timeout, metadata=self._connection.metadata)
        except FAILURES as error:
            return typed_error(error)
        except asyncio.CancelledError as error:
            self._raise_if_closed(error)
            raise
        return answer

    def _call(self, path: str) -> Any:
        if self._channel is None:
            self._channel = self._transport.asyncio_channel()
            self._calls = self._callables(self._channel)
        return self._calls[path]

    def _raise_if_closed(self, error: asyncio.CancelledError) -> None:
        """Closing a channel looks to its calls as if their tasks were cancelled, which nobody asked for."""
        task = asyncio.current_task()
        if self._closed and not (task and task.cancelling()):
            raise Cancelled("the client was closed while the call was in flight") from error


class _Ending:
    """How the server ended a stream.

    If a request is being written at that moment, grpc.aio may put INTERNAL in place of the status that it has already
    received (grpc/grpc#36066). What the call says when it calls back is what the server said.
    """

    def __init__(self, call: Any) -> None:
        self._said: OfframpError | None = None
        call.add_done_callback(self._listen)

    def explain(self, raised: grpc.RpcError) -> OfframpError:
        error = typed_error(raised)
        return self._said or error if isinstance(error, Internal) else error

    def _listen(self, call: Any) -> None:
        code = _at_once(call.code())
        if code not in (None, grpc.StatusCode.OK):
            trailing = dict(_at_once(call.trailing_metadata()) or ())
            self._said = from_status(code.name, _at_once(call.details()) or "", trailing)


def _at_once(known: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for, as the status of a call that is over; None if it has."""
    try:
        known.send(None)
    except StopIteration as end:
        return end.value
    known.close()
    return None
