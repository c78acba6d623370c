"""GRPCInferenceService: which models there are, what each is, how it has fared, loading and unloading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offramp_common.text import quoted
from open_inference import grpc_predict_v2_pb2 as pb

from offramp_server.errors import InvalidRequest, NotFound, NotSupported
from offramp_server.rpc.model_config import config_message, metadata_message
from offramp_server.rpc.ports import Serving
from offramp_server.rpc.statistics import route_statistics_message, statistics_message
from offramp_server.telemetry.stats import ModelStats
from offramp_server.transport.interface import CallContext

_READY = "READY"


class RepositoryCalls:
    """The calls about models other than running them."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def model_ready(self, request: pb.ModelReadyRequest, context: CallContext) -> pb.ModelReadyResponse:
        try:
            ready = self._serving.model_ready(_named(request.name), request.version)
        except NotFound:
            # The protocol asks a question here that has an answer for every name.
            ready = False
        return pb.ModelReadyResponse(ready=ready)

    async def model_metadata(self, request: pb.ModelMetadataRequest, context: CallContext) -> pb.ModelMetadataResponse:
        return metadata_message(self._serving.endpoint(_named(request.name), request.version))

    async def model_config(self, request: pb.ModelConfigRequest, context: CallContext) -> pb.ModelConfigResponse:
        return pb.ModelConfigResponse(
            config=config_message(self._serving.endpoint(_named(request.name), request.version))
        )

    async def model_statistics(
        self, request: pb.ModelStatisticsRequest, context: CallContext
    ) -> pb.ModelStatisticsResponse:
        stats = self._serving.stats
        return pb.ModelStatisticsResponse(
            model_stats=[
                # Asking must not make a counter.
                route_statistics_message(name, version, stats.routes[name])
                if name in stats.routes
                else statistics_message(name, version, stats.models.get((name, version)) or ModelStats())
                for name, version in self._versions(request.name, request.version)
            ]
        )

    def _versions(self, name: str, version: str) -> list[tuple[str, str]]:
        if not name:
            return [(entry.name, entry.version) for entry in self._serving.index() if entry.state == _READY]
        endpoint = self._serving.endpoint(name, version)
        return [(name, known) for known in ([version] if version else endpoint.versions)]

    async def repository_index(
        self, request: pb.RepositoryIndexRequest, context: CallContext
    ) -> pb.RepositoryIndexResponse:
        _refuse_repository(request.repository_name)
        entries = (entry for entry in self._serving.index() if entry.state == _READY or not request.ready)
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
                )
                for entry in entries
            ]
        )

    async def repository_model_load(
        self, request: pb.RepositoryModelLoadRequest, context: CallContext
    ) -> pb.RepositoryModelLoadResponse:
        _refuse_repository(request.repository_name)
        for key in request.parameters:
            raise NotSupported(
                f"load parameter {quoted(key)}: a model is loaded as its folder in the repository says; "
                "change the folder and load without parameters"
            )
        await self._serving.load(_named(request.model_name))
        return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, request: pb.RepositoryModelUnloadRequest, context: CallContext
    ) -> pb.RepositoryModelUnloadResponse:
        _refuse_repository(request.repository_name)
        _check_unload_parameters(request.parameters)
        await self._serving.unload(_named(request.model_name))
        return pb.RepositoryModelUnloadResponse()


def _named(name: str) -> str:
    if not name:
        raise InvalidRequest("the request names no model")
    return name


def _refuse_repository(name: str) -> None:
    if name:
        raise NotSupported(f"repository {quoted(name)}: this server has one repository; leave its name empty")


def _check_unload_parameters(parameters: Mapping[str, Any]) -> None:
    for key, parameter in parameters.items():
        # tritonclient always sends it.
        if key != "unload_dependents":
            raise NotSupported(f"unload parameter {quoted(key)} is unknown; expected none")
        if parameter.bool_param:
            raise NotSupported("unload_dependents: models are unloaded one by one here; name each of them")
