from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RouteKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUTE_KIND_UNSPECIFIED: _ClassVar[RouteKind]
    ROUTE_KIND_SINGLE: _ClassVar[RouteKind]
    ROUTE_KIND_ENSEMBLE: _ClassVar[RouteKind]
    ROUTE_KIND_EARLY_EXIT: _ClassVar[RouteKind]
    ROUTE_KIND_SPLIT: _ClassVar[RouteKind]

class RouteState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUTE_STATE_UNSPECIFIED: _ClassVar[RouteState]
    ROUTE_STATE_READY: _ClassVar[RouteState]
    ROUTE_STATE_UNAVAILABLE: _ClassVar[RouteState]

class LoadLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOAD_LEVEL_UNSPECIFIED: _ClassVar[LoadLevel]
    LOAD_LEVEL_IDLE: _ClassVar[LoadLevel]
    LOAD_LEVEL_NORMAL: _ClassVar[LoadLevel]
    LOAD_LEVEL_BUSY: _ClassVar[LoadLevel]
    LOAD_LEVEL_OVERLOADED: _ClassVar[LoadLevel]

class RouteModelRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUTE_MODEL_ROLE_UNSPECIFIED: _ClassVar[RouteModelRole]
    ROUTE_MODEL_ROLE_MEMBER: _ClassVar[RouteModelRole]
    ROUTE_MODEL_ROLE_STAGE: _ClassVar[RouteModelRole]
    ROUTE_MODEL_ROLE_ARM: _ClassVar[RouteModelRole]
    ROUTE_MODEL_ROLE_SHADOW: _ClassVar[RouteModelRole]

class RouteChangeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUTE_CHANGE_KIND_UNSPECIFIED: _ClassVar[RouteChangeKind]
    ROUTE_CHANGE_KIND_UPDATED: _ClassVar[RouteChangeKind]
    ROUTE_CHANGE_KIND_FILE: _ClassVar[RouteChangeKind]
    ROUTE_CHANGE_KIND_DROPPED: _ClassVar[RouteChangeKind]
ROUTE_KIND_UNSPECIFIED: RouteKind
ROUTE_KIND_SINGLE: RouteKind
ROUTE_KIND_ENSEMBLE: RouteKind
ROUTE_KIND_EARLY_EXIT: RouteKind
ROUTE_KIND_SPLIT: RouteKind
ROUTE_STATE_UNSPECIFIED: RouteState
ROUTE_STATE_READY: RouteState
ROUTE_STATE_UNAVAILABLE: RouteState
LOAD_LEVEL_UNSPECIFIED: LoadLevel
LOAD_LEVEL_IDLE: LoadLevel
LOAD_LEVEL_NORMAL: LoadLevel
LOAD_LEVEL_BUSY: LoadLevel
LOAD_LEVEL_OVERLOADED: LoadLevel
ROUTE_MODEL_ROLE_UNSPECIFIED: RouteModelRole
ROUTE_MODEL_ROLE_MEMBER: RouteModelRole
ROUTE_MODEL_ROLE_STAGE: RouteModelRole
ROUTE_MODEL_ROLE_ARM: RouteModelRole
ROUTE_MODEL_ROLE_SHADOW: RouteModelRole
ROUTE_CHANGE_KIND_UNSPECIFIED: RouteChangeKind
ROUTE_CHANGE_KIND_UPDATED: RouteChangeKind
ROUTE_CHANGE_KIND_FILE: RouteChangeKind
ROUTE_CHANGE_KIND_DROPPED: RouteChangeKind

class RouteModel(_message.Message):
    __slots__ = ("name", "version", "resolved_version", "role", "label")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    resolved_version: str
    role: RouteModelRole
    label: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., resolved_version: _Optional[str] = ..., role: _Optional[_Union[RouteModelRole, str]] = ..., label: _Optional[str] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("name", "kind", "models", "state", "reason", "etag", "settings", "file_settings", "update_time", "updated_by", "epoch", "load_level")
    class SettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class FileSettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    FILE_SETTINGS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATED_BY_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOAD_LEVEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: RouteKind
    models: _containers.RepeatedCompositeFieldContainer[RouteModel]
    state: RouteState
    reason: str
    etag: str
    settings: _containers.ScalarMap[str, float]
    file_settings: _containers.ScalarMap[str, float]
    update_time: _timestamp_pb2.Timestamp
    updated_by: str
    epoch: int
    load_level: LoadLevel
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[RouteKind, str]] = ..., models: _Optional[_Iterable[_Union[RouteModel, _Mapping]]] = ..., state: _Optional[_Union[RouteState, str]] = ..., reason: _Optional[str] = ..., etag: _Optional[str] = ..., settings: _Optional[_Mapping[str, float]] = ..., file_settings: _Optional[_Mapping[str, float]] = ..., update_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., updated_by: _Optional[str] = ..., epoch: _Optional[int] = ..., load_level: _Optional[_Union[LoadLevel, str]] = ...) -> None: ...

class ListRoutesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRoutesResponse(_message.Message):
    __slots__ = ("routes", "next_page_token")
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    next_page_token: str
    def __init__(self, routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetRouteRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetRouteResponse(_message.Message):
    __slots__ = ("route",)
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    route: Route
    def __init__(self, route: _Optional[_Union[Route, _Mapping]] = ...) -> None: ...

class UpdateRouteRequest(_message.Message):
    __slots__ = ("route", "update_mask", "validate_only")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    route: Route
    update_mask: _field_mask_pb2.FieldMask
    validate_only: bool
    def __init__(self, route: _Optional[_Union[Route, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ..., validate_only: bool = ...) -> None: ...

class UpdateRouteResponse(_message.Message):
    __slots__ = ("route",)
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    route: Route
    def __init__(self, route: _Optional[_Union[Route, _Mapping]] = ...) -> None: ...

class WatchRouteRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class WatchRouteResponse(_message.Message):
    __slots__ = ("route",)
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    route: Route
    def __init__(self, route: _Optional[_Union[Route, _Mapping]] = ...) -> None: ...

class WatchRoutesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchRoutesResponse(_message.Message):
    __slots__ = ("routes", "removed")
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    removed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ..., removed: _Optional[_Iterable[str]] = ...) -> None: ...

class SettingChange(_message.Message):
    __slots__ = ("key", "before", "after")
    KEY_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    key: str
    before: float
    after: float
    def __init__(self, key: _Optional[str] = ..., before: _Optional[float] = ..., after: _Optional[float] = ...) -> None: ...

class RouteChange(_message.Message):
    __slots__ = ("name", "kind", "change_time", "changed_by", "settings")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CHANGE_TIME_FIELD_NUMBER: _ClassVar[int]
    CHANGED_BY_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: RouteChangeKind
    change_time: _timestamp_pb2.Timestamp
    changed_by: str
    settings: _containers.RepeatedCompositeFieldContainer[SettingChange]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[RouteChangeKind, str]] = ..., change_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., changed_by: _Optional[str] = ..., settings: _Optional[_Iterable[_Union[SettingChange, _Mapping]]] = ...) -> None: ...

class ListRouteChangesRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRouteChangesResponse(_message.Message):
    __slots__ = ("changes", "next_page_token")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[RouteChange]
    next_page_token: str
    def __init__(self, changes: _Optional[_Iterable[_Union[RouteChange, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
