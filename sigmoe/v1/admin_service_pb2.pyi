import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from sigmoe.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReplicaState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLICA_STATE_UNSPECIFIED: _ClassVar[ReplicaState]
    REPLICA_STATE_STARTING: _ClassVar[ReplicaState]
    REPLICA_STATE_SERVING: _ClassVar[ReplicaState]
    REPLICA_STATE_RECOVERING: _ClassVar[ReplicaState]
    REPLICA_STATE_DRAINING: _ClassVar[ReplicaState]

class RankState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RANK_STATE_UNSPECIFIED: _ClassVar[RankState]
    RANK_STATE_STARTING: _ClassVar[RankState]
    RANK_STATE_SERVING: _ClassVar[RankState]
    RANK_STATE_LOST: _ClassVar[RankState]

class DraftingState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DRAFTING_STATE_UNSPECIFIED: _ClassVar[DraftingState]
    DRAFTING_STATE_OFF: _ClassVar[DraftingState]
    DRAFTING_STATE_FIXED: _ClassVar[DraftingState]
    DRAFTING_STATE_LEARNING: _ClassVar[DraftingState]
    DRAFTING_STATE_DRAFTING: _ClassVar[DraftingState]
    DRAFTING_STATE_RESTING: _ClassVar[DraftingState]
    DRAFTING_STATE_BROKEN: _ClassVar[DraftingState]
REPLICA_STATE_UNSPECIFIED: ReplicaState
REPLICA_STATE_STARTING: ReplicaState
REPLICA_STATE_SERVING: ReplicaState
REPLICA_STATE_RECOVERING: ReplicaState
REPLICA_STATE_DRAINING: ReplicaState
RANK_STATE_UNSPECIFIED: RankState
RANK_STATE_STARTING: RankState
RANK_STATE_SERVING: RankState
RANK_STATE_LOST: RankState
DRAFTING_STATE_UNSPECIFIED: DraftingState
DRAFTING_STATE_OFF: DraftingState
DRAFTING_STATE_FIXED: DraftingState
DRAFTING_STATE_LEARNING: DraftingState
DRAFTING_STATE_DRAFTING: DraftingState
DRAFTING_STATE_RESTING: DraftingState
DRAFTING_STATE_BROKEN: DraftingState

class GetClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetClusterResponse(_message.Message):
    __slots__ = ("model", "epoch", "gateway", "ranks", "server_version", "uptime", "configuration", "fleet")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    FLEET_FIELD_NUMBER: _ClassVar[int]
    model: str
    epoch: int
    gateway: GatewayStatus
    ranks: _containers.RepeatedCompositeFieldContainer[RankStatus]
    server_version: str
    uptime: _duration_pb2.Duration
    configuration: str
    fleet: FleetStatus
    def __init__(self, model: _Optional[str] = ..., epoch: _Optional[int] = ..., gateway: _Optional[_Union[GatewayStatus, _Mapping]] = ..., ranks: _Optional[_Iterable[_Union[RankStatus, _Mapping]]] = ..., server_version: _Optional[str] = ..., uptime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., configuration: _Optional[str] = ..., fleet: _Optional[_Union[FleetStatus, _Mapping]] = ...) -> None: ...

class ReplicaStatus(_message.Message):
    __slots__ = ("replica", "state")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    replica: int
    state: ReplicaState
    def __init__(self, replica: _Optional[int] = ..., state: _Optional[_Union[ReplicaState, str]] = ...) -> None: ...

class FleetStatus(_message.Message):
    __slots__ = ("replicas", "wanted", "min_replicas", "max_replicas", "reason", "load")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    MIN_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    MAX_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaStatus]
    wanted: int
    min_replicas: int
    max_replicas: int
    reason: str
    load: FleetLoad
    def __init__(self, replicas: _Optional[_Iterable[_Union[ReplicaStatus, _Mapping]]] = ..., wanted: _Optional[int] = ..., min_replicas: _Optional[int] = ..., max_replicas: _Optional[int] = ..., reason: _Optional[str] = ..., load: _Optional[_Union[FleetLoad, _Mapping]] = ...) -> None: ...

class FleetLoad(_message.Message):
    __slots__ = ("serving_replicas", "sequences", "waiting_sequences", "queue_time", "kv_use", "attainment", "background_sequences")
    SERVING_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    WAITING_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    KV_USE_FIELD_NUMBER: _ClassVar[int]
    ATTAINMENT_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    serving_replicas: int
    sequences: int
    waiting_sequences: int
    queue_time: _duration_pb2.Duration
    kv_use: float
    attainment: float
    background_sequences: int
    def __init__(self, serving_replicas: _Optional[int] = ..., sequences: _Optional[int] = ..., waiting_sequences: _Optional[int] = ..., queue_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., kv_use: _Optional[float] = ..., attainment: _Optional[float] = ..., background_sequences: _Optional[int] = ...) -> None: ...

class ListEventsRequest(_message.Message):
    __slots__ = ("after_id", "follow")
    AFTER_ID_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    after_id: int
    follow: bool
    def __init__(self, after_id: _Optional[int] = ..., follow: _Optional[bool] = ...) -> None: ...

class ListEventsResponse(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[FleetEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[FleetEvent, _Mapping]]] = ...) -> None: ...

class FleetEvent(_message.Message):
    __slots__ = ("id", "time", "kind", "replica", "reason", "numbers")
    class NumbersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    id: int
    time: _timestamp_pb2.Timestamp
    kind: str
    replica: int
    reason: str
    numbers: _containers.ScalarMap[str, float]
    def __init__(self, id: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., kind: _Optional[str] = ..., replica: _Optional[int] = ..., reason: _Optional[str] = ..., numbers: _Optional[_Mapping[str, float]] = ...) -> None: ...

class GatewayStatus(_message.Message):
    __slots__ = ("active_requests", "max_requests", "ended_requests", "resumed_requests", "streamed_tokens")
    class EndedRequestsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ACTIVE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ENDED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    STREAMED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    active_requests: int
    max_requests: int
    ended_requests: _containers.ScalarMap[str, int]
    resumed_requests: int
    streamed_tokens: int
    def __init__(self, active_requests: _Optional[int] = ..., max_requests: _Optional[int] = ..., ended_requests: _Optional[_Mapping[str, int]] = ..., resumed_requests: _Optional[int] = ..., streamed_tokens: _Optional[int] = ...) -> None: ...

class DraftingStatus(_message.Message):
    __slots__ = ("method", "state", "length", "reason", "drafts", "cost_error")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    COST_ERROR_FIELD_NUMBER: _ClassVar[int]
    method: _types_pb2.DraftMethod
    state: DraftingState
    length: int
    reason: str
    drafts: _types_pb2.DraftCounts
    cost_error: float
    def __init__(self, method: _Optional[_Union[_types_pb2.DraftMethod, str]] = ..., state: _Optional[_Union[DraftingState, str]] = ..., length: _Optional[int] = ..., reason: _Optional[str] = ..., drafts: _Optional[_Union[_types_pb2.DraftCounts, _Mapping]] = ..., cost_error: _Optional[float] = ...) -> None: ...

class RankStatus(_message.Message):
    __slots__ = ("rank", "state", "device", "host", "pid", "experts", "waiting_sequences", "running_sequences", "kv_blocks", "kv_blocks_free", "kv_blocks_cached", "kv_block_size", "steps", "generated_tokens", "preemptions", "prefix_query_tokens", "prefix_hit_tokens", "weight_bytes", "kv_bytes", "expert_tokens", "kernels", "drafts", "draft_length", "draft_reason", "forward_time", "sample_time", "draft_time", "extend_time", "draft_cost_error", "replica", "drafting")
    RANK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_FREE_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_CACHED_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_QUERY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPERT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DRAFT_REASON_FIELD_NUMBER: _ClassVar[int]
    FORWARD_TIME_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_TIME_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TIME_FIELD_NUMBER: _ClassVar[int]
    EXTEND_TIME_FIELD_NUMBER: _ClassVar[int]
    DRAFT_COST_ERROR_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    DRAFTING_FIELD_NUMBER: _ClassVar[int]
    rank: int
    state: RankState
    device: str
    host: str
    pid: int
    experts: _containers.RepeatedScalarFieldContainer[int]
    waiting_sequences: int
    running_sequences: int
    kv_blocks: int
    kv_blocks_free: int
    kv_blocks_cached: int
    kv_block_size: int
    steps: int
    generated_tokens: int
    preemptions: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    weight_bytes: int
    kv_bytes: int
    expert_tokens: _containers.RepeatedScalarFieldContainer[int]
    kernels: str
    drafts: _types_pb2.DraftCounts
    draft_length: int
    draft_reason: str
    forward_time: _duration_pb2.Duration
    sample_time: _duration_pb2.Duration
    draft_time: _duration_pb2.Duration
    extend_time: _duration_pb2.Duration
    draft_cost_error: float
    replica: int
    drafting: _containers.RepeatedCompositeFieldContainer[DraftingStatus]
    def __init__(self, rank: _Optional[int] = ..., state: _Optional[_Union[RankState, str]] = ..., device: _Optional[str] = ..., host: _Optional[str] = ..., pid: _Optional[int] = ..., experts: _Optional[_Iterable[int]] = ..., waiting_sequences: _Optional[int] = ..., running_sequences: _Optional[int] = ..., kv_blocks: _Optional[int] = ..., kv_blocks_free: _Optional[int] = ..., kv_blocks_cached: _Optional[int] = ..., kv_block_size: _Optional[int] = ..., steps: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., preemptions: _Optional[int] = ..., prefix_query_tokens: _Optional[int] = ..., prefix_hit_tokens: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., kv_bytes: _Optional[int] = ..., expert_tokens: _Optional[_Iterable[int]] = ..., kernels: _Optional[str] = ..., drafts: _Optional[_Union[_types_pb2.DraftCounts, _Mapping]] = ..., draft_length: _Optional[int] = ..., draft_reason: _Optional[str] = ..., forward_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., sample_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., draft_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., extend_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., draft_cost_error: _Optional[float] = ..., replica: _Optional[int] = ..., drafting: _Optional[_Iterable[_Union[DraftingStatus, _Mapping]]] = ...) -> None: ...
