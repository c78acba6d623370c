"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self, TypeVar, Unpack, overload

from offramp_client._base import LOAD_TIMEOUT, BaseClient
from offramp_client._connection import FAILURES, typed_error
from offramp_client._plans import Done, Outcome, Pause, Plan, Step, Watch, proceed
from offramp_client.classification import Classification, ClassifyOptions, Images, Texts, read_items
from offramp_client.inference import InferRequest, InferResult, ParameterValue, TensorLike
from offramp_client.metadata import IndexEntry, ModelConfig, ModelMetadata, ServerMetadata
from offramp_client.options import CLIENT_DEFAULT, Timeout
from offramp_client.pictures import Image
from offramp_client.retry import check_timeout
from offramp_client.routes import Route, RouteChange, reset_request, update_request
from offramp_client.statistics import ModelStatistics

T = TypeVar("T")


class Client(BaseClient):
    """A blocking client of one server; safe to share between threads.

        with Client("localhost:8001") as client:
            logits = client.infer("fashion", {"image": image})["logits"]

    Every call raises a subclass of `OfframpError` if the server refuses or does not answer (see
    `offramp_client.errors`), and RuntimeError once the client is closed. What is UNAVAILABLE is tried again within
    the call's deadline, except where a call says that it is not.
    """

    def _connect(self) -> None:
        self._channel = self._transport.blocking_channel()
        self._calls = self._callables(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is in flight and give the connection back. A second time does nothing."""
        self._closed = True
        self._channel.close()

    def infer(
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
        return self._run(self._plans.infer(request, cast=cast, timeout=timeout))

    @overload
    def classify(self, model: str, *, text: str, **options: Unpack[ClassifyOptions]) -> Classification: ...

    @overload
    def classify(self, model: str, *, text: Texts, **options: Unpack[ClassifyOptions]) -> list[Classification]: ...

    @overload
    def classify(self, model: str, *, image: Image, **options: Unpack[ClassifyOptions]) -> Classification: ...

    @overload
    def classify(self, model: str, *, image: Images, **options: Unpack[ClassifyOptions]) -> list[Classification]: ...

    def classify(
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

            client.classify("reviews", text="A good film").label
            [answer.score for answer in client.classify("fashion", image=["boot.png", pixels])]

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
        answers = self._run(self._plans.classify(model, items, options))
        return answers[0] if items.single else answers

    def infer_stream(self, requests: Iterable[InferRequest], *, timeout: float | None = None) -> Iterator[InferResult]:
        """Send many requests over one call; their answers come in the same order, while requests are still taken.

        A request that fails does not end the stream: its result has `error` set, and raises it when its outputs are
        asked for. An error of the stream itself is raised; nothing is tried again, since the answers already given
        cannot be taken back. An exception raised by `requests` (which is read in a thread of its own), or by a
        request that cannot be sent, is raised here after the answers to the requests before it.

        `timeout` is for the whole stream. The time of a single request is limited by its own `timeout`, by default
        the client's, which the server watches.
        """
        self._check_open()
        check_timeout(timeout)
        return self._stream(requests, timeout)

    def server_metadata(self, *, timeout: Timeout = CLIENT_DEFAULT) -> ServerMetadata:
        """The server's name, version and extensions."""
        return self._run(self._plans.server_metadata(timeout))

    def is_live(self, *, timeout: Timeout = CLIENT_DEFAULT) -> bool:
        """Whether the server answers at all. False if it cannot be reached; not tried again."""
        return self._run(self._plans.is_live(timeout))

    def is_ready(self, *, timeout: Timeout = CLIENT_DEFAULT) -> bool:
        """Whether the server takes requests. False while it starts or drains, and if it cannot be reached."""
        return self._run(self._plans.is_ready(timeout))

    def is_model_ready(self, name: str, version: str = "", *, timeout: Timeout = CLIENT_DEFAULT) -> bool:
        """Whether a model or route can answer now. False also if the server cannot be reached."""
        return self._run(self._plans.is_model_ready(name, version, timeout))

    def wait_until_ready(self, model: str | None = None, version: str = "", *, timeout: float | None = 60.0) -> None:
        """Return once the server, or one of its models or routes, takes requests. It need not be listening yet.

        Raises DeadlineExceeded with the last reason after `timeout` seconds, and every other error at once: NotFound
        for a name that the server does not know, Unauthenticated for a wrong token.
        """
        self._run(self._plans.wait_until_ready(model, version, timeout))

    def model_metadata(self, name: str, version: str = "", *, timeout: Timeout = CLIENT_DEFAULT) -> ModelMetadata:
        """The inputs and outputs of a model or route. Raises NotFound."""
        return self._run(self._plans.model_metadata(name, version, timeout))

    def model_config(self, name: str, version: str = "", *, timeout: Timeout = CLIENT_DEFAULT) -> ModelConfig:
        """How a model is served: its engine, batch size and instances. Raises NotFound."""
        return self._run(self._plans.model_config(name, version, timeout))

    def model_statistics(
        self, name: str = "", version: str = "", *, timeout: Timeout = CLIENT_DEFAULT
    ) -> list[ModelStatistics]:
        """Counts and times of one model, or of all if `name` is empty. Raises NotFound."""
        return self._run(self._plans.model_statistics(name, version, timeout))

    def repository_index(self, *, ready: bool = False, timeout: Timeout = CLIENT_DEFAULT) -> list[IndexEntry]:
        """Every version of every model in the repository with its state; with `ready`, only those that can answer."""
        return self._run(self._plans.repository_index(ready, timeout))

    def load_model(self, name: str, *, timeout: Timeout = LOAD_TIMEOUT) -> None:
        """Load a model, or its new versions, and return when it answers. Needs the role `admin`.

        Not tried again: from UNAVAILABLE one cannot tell whether the server had begun, and beginning once more would
        compile and warm up once more. Raises NotFound, FailedPrecondition if the model does not load.
        """
        self._run(self._plans.load_model(name, timeout))

    def unload_model(self, name: str, *, timeout: Timeout = LOAD_TIMEOUT) -> None:
        """Take a model out of service after what it is working on. Needs the role `admin`.

        Not tried again, as `load_model` is not: a second attempt might find nothing to unload. Raises NotFound.
        """
        self._run(self._plans.unload_model(name, timeout))

    def routes(self, *, timeout: Timeout = CLIENT_DEFAULT) -> list[Route]:
        """All routes, in the order of their names. Raises Unimplemented where the server is not Offramp."""
        return self._run(self._plans.list_routes(timeout))

    def route(self, name: str, *, timeout: Timeout = CLIENT_DEFAULT) -> Route:
        """One route. Raises NotFound, or Unimplemented where the server is not Offramp."""
        return self._run(self._plans.get_route(name, timeout))

    def update_route(
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
        return self._run(self._plans.update_route(request, timeout))

    def reset_route(self, name: str, *, etag: str | None = None, timeout: Timeout = CLIENT_DEFAULT) -> Route:
        """Take every setting of a route back to what route.toml says. Raises as `update_route`."""
        return self._run(self._plans.update_route(reset_request(name, etag), timeout))

    def route_changes(
        self, name: str, *, limit: int | None = None, timeout: Timeout = CLIENT_DEFAULT
    ) -> list[RouteChange]:
        """What was changed of a route while it ran, the latest first, at most `limit`. Needs the role `admin`."""
        return self._run(self._plans.route_changes(name, limit, timeout))

    def watch_route(self, name: str, *, timeout: float | None = None) -> Iterator[Route]:
        """The route as it is, and again after each change. States that nobody had time to read are skipped.

        It goes on until you stop reading, or for `timeout` seconds (DeadlineExceeded). Raises NotFound if there is no
        such route or it goes, Unavailable if the server drains or is lost: watch again then.
        """
        return self._watch(self._plans.watch_route(name), timeout)

    def watch_routes(self, *, timeout: float | None = None) -> Iterator[Mapping[str, Route]]:
        """All routes by their names, now and after each change; else as `watch_route`."""
        return self._watch(self._plans.watch_routes(), timeout)

    def _watch(self, watch: Watch[T], timeout: float | None) -> Iterator[T]:
        self._check_open()
        check_timeout(timeout)
        return self._answers(watch, timeout)

    def _answers(self, watch: Watch[T], timeout: float | None) -> Iterator[T]:
        call = self._calls[watch.method.path](watch.payload, timeout=timeout, metadata=self._connection.metadata)
        try:
            for answer in call:
                yield watch.read(answer)
        except FAILURES as error:
            raise typed_error(error) from error
        finally:
            # For a caller who stops listening; after the end it does nothing.
            call.cancel()

    def _stream(self, requests: Iterable[InferRequest], timeout: float | None) -> Iterator[InferResult]:
        failures: list[Exception] = []
        call = self._calls[self._plans.stream.path](
            self._payloads(requests, failures), timeout=timeout, metadata=self._connection.metadata
        )
        try:
            for payload in call:
                yield self._plans.decode_streamed(payload)
        except FAILURES as error:
            raise typed_error(error) from error
        finally:
            # For a caller who stops listening; after the end it does nothing.
            call.cancel()
        for failure in failures:
            raise failure

    def _payloads(self, requests: Iterable[InferRequest], failures: list[Exception]) -> Iterator[bytes]:
        try:
            for request in requests:
                yield self._plans.encode_streamed(request)
        except Exception as error:
            # Raised in gRPC's thread it would only be logged.
            failures.append(error)

    def _run(self, plan: Plan[T]) -> T:
        self._check_open()
        step = proceed(plan, None)
        while not isinstance(step, Done):
            step = proceed(plan, self._carry_out(step))
        return step.result

    def _carry_out(self, step: Step) -> Outcome:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        call = self._calls[step.method.path]
        try:
            answer: bytes = call(step.payload, timeout=step.timeout, metadata=self._connection.metadata)
        except FAILURES as error:
            return typed_error(error)
        return answer
