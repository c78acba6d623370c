"""The HTTP port for those who watch: /metrics, /livez and /readyz."""

from __future__ import annotations

import ssl
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler

from offramp_server.errors import ConfigurationError, InvalidRequest
from offramp_server.telemetry.prometheus import Exposition

HINT = "this port has /metrics, /livez and /readyz; inference is on the gRPC port"

# A scrape that is under way when the server stops gets this long. Seconds.
SHUTDOWN_SECONDS = 2.0


class TelemetryServer:
    """Answers GET and HEAD; has no other state than its socket.

    `not_ready` says why the server takes no requests just now, e.g. "draining", and "" if it does.
    """

    def __init__(self, exposition: Exposition, live: Callable[[], bool], not_ready: Callable[[], str]) -> None:
        self._exposition = exposition
        self._live = live
        self._not_ready = not_ready
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            handle_signals=False,
            shutdown_timeout=SHUTDOWN_SECONDS,
        )

    async def start(self, host: str, port: int, ssl_context: ssl.SSLContext | None = None) -> int:
        """Listen, and return the port: a free one if 0 was asked for. Raises ConfigurationError if it cannot be had."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port, ssl_context=ssl_context).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigurationError(
                f"cannot listen for HTTP on {host}:{port} ({error.strerror}): expected an address of this machine and "
                "a port that is free; 0 takes any"
            ) from error
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """Stop listening and let answers that are under way finish."""
        await self._runner.cleanup()

    def _application(self) -> web.Application:
        # Nothing here reads a body.
        application = web.Application(middlewares=[_plain_errors], client_max_size=1)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/livez", self._livez)
        application.router.add_get("/readyz", self._readyz)
        application.on_response_prepare.append(_set_headers)
        return application

    async def _metrics(self, request: web.Request) -> web.Response:
        # Named like the parameter of Prometheus' own exporters.
        groups = request.query.getall("collect[]", [])
        try:
            body, content_type = await self._exposition.render(request.headers.get("Accept", ""), groups)
        except InvalidRequest as error:
            return _text(400, str(error))
        response = web.Response(body=body, headers={"Content-Type": content_type})
        response.enable_compression()
        return response

    async def _livez(self, request: web.Request) -> web.Response:
        return _text(200, "ok") if self._live() else _text(503, "not live")

    async def _readyz(self, request: web.Request) -> web.Response:
        reason = self._not_ready()
        return _text(503, reason) if reason else _text(200, "ok")


@web.middleware
async def _plain_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return _text(404, f"not found: {HINT}")
    except web.HTTPMethodNotAllowed as error:
        response = _text(405, "method not allowed: expected GET or HEAD")
        response.headers["Allow"] = error.headers["Allow"]
        return response


async def _set_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    # The default names the versions of Python and aiohttp.
    response.headers["Server"] = "offramp"
    response.headers["Cache-Control"] = "no-store"


def _text(status: int, line: str) -> web.Response:
    return web.Response(status=status, text=line + "\n")
