from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Space(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SPACE_UNSPECIFIED: _ClassVar[Space]
    SPACE_RAW: _ClassVar[Space]
    SPACE_MODEL: _ClassVar[Space]
SPACE_UNSPECIFIED: Space
SPACE_RAW: Space
SPACE_MODEL: Space

class Array(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Size(_message.Message):
    __slots__ = ("height", "width")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class TwinRef(_message.Message):
    __slots__ = ("mouse", "model", "version")
    MOUSE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    mouse: str
    model: str
    version: str
    def __init__(self, mouse: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class TwinIdentity(_message.Message):
    __slots__ = ("mouse", "model", "version", "digest")
    MOUSE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    mouse: str
    model: str
    version: str
    digest: str
    def __init__(self, mouse: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("twin", "images", "behavior", "pupil_center", "space", "neurons", "unit_ids", "condition_space")
    TWIN_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    BEHAVIOR_FIELD_NUMBER: _ClassVar[int]
    PUPIL_CENTER_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    NEURONS_FIELD_NUMBER: _ClassVar[int]
    UNIT_IDS_FIELD_NUMBER: _ClassVar[int]
    CONDITION_SPACE_FIELD_NUMBER: _ClassVar[int]
    twin: TwinRef
    images: Array
    behavior: Array
    pupil_center: Array
    space: Space
    neurons: Array
    unit_ids: Array
    condition_space: Space
    def __init__(self, twin: _Optional[_Union[TwinRef, _Mapping]] = ..., images: _Optional[_Union[Array, _Mapping]] = ..., behavior: _Optional[_Union[Array, _Mapping]] = ..., pupil_center: _Optional[_Union[Array, _Mapping]] = ..., space: _Optional[_Union[Space, str]] = ..., neurons: _Optional[_Union[Array, _Mapping]] = ..., unit_ids: _Optional[_Union[Array, _Mapping]] = ..., condition_space: _Optional[_Union[Space, str]] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("responses", "twin", "defaults", "warnings")
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    TWIN_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    responses: Array
    twin: TwinIdentity
    defaults: _containers.RepeatedScalarFieldContainer[str]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, responses: _Optional[_Union[Array, _Mapping]] = ..., twin: _Optional[_Union[TwinIdentity, _Mapping]] = ..., defaults: _Optional[_Iterable[str]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class GradientRequest(_message.Message):
    __slots__ = ("predict", "cotangent")
    PREDICT_FIELD_NUMBER: _ClassVar[int]
    COTANGENT_FIELD_NUMBER: _ClassVar[int]
    predict: PredictRequest
    cotangent: Array
    def __init__(self, predict: _Optional[_Union[PredictRequest, _Mapping]] = ..., cotangent: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...

class GradientResponse(_message.Message):
    __slots__ = ("predict", "images", "behavior", "pupil_center")
    PREDICT_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    BEHAVIOR_FIELD_NUMBER: _ClassVar[int]
    PUPIL_CENTER_FIELD_NUMBER: _ClassVar[int]
    predict: PredictResponse
    images: Array
    behavior: Array
    pupil_center: Array
    def __init__(self, predict: _Optional[_Union[PredictResponse, _Mapping]] = ..., images: _Optional[_Union[Array, _Mapping]] = ..., behavior: _Optional[_Union[Array, _Mapping]] = ..., pupil_center: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ("id", "predict", "gradient")
    ID_FIELD_NUMBER: _ClassVar[int]
    PREDICT_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    id: int
    predict: PredictRequest
    gradient: GradientRequest
    def __init__(self, id: _Optional[int] = ..., predict: _Optional[_Union[PredictRequest, _Mapping]] = ..., gradient: _Optional[_Union[GradientRequest, _Mapping]] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("id", "predict", "gradient", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    PREDICT_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    predict: PredictResponse
    gradient: GradientResponse
    error: Error
    def __init__(self, id: _Optional[int] = ..., predict: _Optional[_Union[PredictResponse, _Mapping]] = ..., gradient: _Optional[_Union[GradientResponse, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class OptimizeRequest(_message.Message):
    __slots__ = ("twins", "target", "behavior", "pupil_center", "space", "constraints", "start", "ascent", "diversity", "report_every", "report_images", "condition_space")
    TWINS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    BEHAVIOR_FIELD_NUMBER: _ClassVar[int]
    PUPIL_CENTER_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINTS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    ASCENT_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    REPORT_EVERY_FIELD_NUMBER: _ClassVar[int]
    REPORT_IMAGES_FIELD_NUMBER: _ClassVar[int]
    CONDITION_SPACE_FIELD_NUMBER: _ClassVar[int]
    twins: _containers.RepeatedCompositeFieldContainer[TwinRef]
    target: OptimizeTarget
    behavior: Array
    pupil_center: Array
    space: Space
    constraints: OptimizeConstraints
    start: OptimizeStart
    ascent: OptimizeAscent
    diversity: OptimizeDiversity
    report_every: int
    report_images: bool
    condition_space: Space
    def __init__(self, twins: _Optional[_Iterable[_Union[TwinRef, _Mapping]]] = ..., target: _Optional[_Union[OptimizeTarget, _Mapping]] = ..., behavior: _Optional[_Union[Array, _Mapping]] = ..., pupil_center: _Optional[_Union[Array, _Mapping]] = ..., space: _Optional[_Union[Space, str]] = ..., constraints: _Optional[_Union[OptimizeConstraints, _Mapping]] = ..., start: _Optional[_Union[OptimizeStart, _Mapping]] = ..., ascent: _Optional[_Union[OptimizeAscent, _Mapping]] = ..., diversity: _Optional[_Union[OptimizeDiversity, _Mapping]] = ..., report_every: _Optional[int] = ..., report_images: bool = ..., condition_space: _Optional[_Union[Space, str]] = ...) -> None: ...

class OptimizeTarget(_message.Message):
    __slots__ = ("neurons", "unit_ids", "weights", "against", "temperature")
    NEURONS_FIELD_NUMBER: _ClassVar[int]
    UNIT_IDS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    AGAINST_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    neurons: Array
    unit_ids: Array
    weights: Array
    against: Array
    temperature: float
    def __init__(self, neurons: _Optional[_Union[Array, _Mapping]] = ..., unit_ids: _Optional[_Union[Array, _Mapping]] = ..., weights: _Optional[_Union[Array, _Mapping]] = ..., against: _Optional[_Union[Array, _Mapping]] = ..., temperature: _Optional[float] = ...) -> None: ...

class OptimizeConstraints(_message.Message):
    __slots__ = ("norm", "max_norm", "std", "max_std", "mean", "low", "high", "mask", "background")
    NORM_FIELD_NUMBER: _ClassVar[int]
    MAX_NORM_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    MAX_STD_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    norm: float
    max_norm: float
    std: float
    max_std: float
    mean: float
    low: float
    high: float
    mask: Array
    background: Array
    def __init__(self, norm: _Optional[float] = ..., max_norm: _Optional[float] = ..., std: _Optional[float] = ..., max_std: _Optional[float] = ..., mean: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., mask: _Optional[_Union[Array, _Mapping]] = ..., background: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...

class OptimizeStart(_message.Message):
    __slots__ = ("kind", "images", "seed", "first_image", "trials", "trial_steps")
    KIND_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FIRST_IMAGE_FIELD_NUMBER: _ClassVar[int]
    TRIALS_FIELD_NUMBER: _ClassVar[int]
    TRIAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    images: Array
    seed: int
    first_image: int
    trials: int
    trial_steps: int
    def __init__(self, kind: _Optional[str] = ..., images: _Optional[_Union[Array, _Mapping]] = ..., seed: _Optional[int] = ..., first_image: _Optional[int] = ..., trials: _Optional[int] = ..., trial_steps: _Optional[int] = ...) -> None: ...

class OptimizeAscent(_message.Message):
    __slots__ = ("optimizer", "steps", "step_size", "step_size_end", "momentum", "patience", "tolerance", "blur", "blur_end", "fourier", "jitter", "total_variation", "l2")
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_SIZE_FIELD_NUMBER: _ClassVar[int]
    STEP_SIZE_END_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    BLUR_FIELD_NUMBER: _ClassVar[int]
    BLUR_END_FIELD_NUMBER: _ClassVar[int]
    FOURIER_FIELD_NUMBER: _ClassVar[int]
    JITTER_FIELD_NUMBER: _ClassVar[int]
    TOTAL_VARIATION_FIELD_NUMBER: _ClassVar[int]
    L2_FIELD_NUMBER: _ClassVar[int]
    optimizer: str
    steps: int
    step_size: float
    step_size_end: float
    momentum: float
    patience: int
    tolerance: float
    blur: float
    blur_end: float
    fourier: float
    jitter: int
    total_variation: float
    l2: float
    def __init__(self, optimizer: _Optional[str] = ..., steps: _Optional[int] = ..., step_size: _Optional[float] = ..., step_size_end: _Optional[float] = ..., momentum: _Optional[float] = ..., patience: _Optional[int] = ..., tolerance: _Optional[float] = ..., blur: _Optional[float] = ..., blur_end: _Optional[float] = ..., fourier: _Optional[float] = ..., jitter: _Optional[int] = ..., total_variation: _Optional[float] = ..., l2: _Optional[float] = ...) -> None: ...

class OptimizeDiversity(_message.Message):
    __slots__ = ("group", "min_share")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MIN_SHARE_FIELD_NUMBER: _ClassVar[int]
    group: Array
    min_share: float
    def __init__(self, group: _Optional[_Union[Array, _Mapping]] = ..., min_share: _Optional[float] = ...) -> None: ...

class OptimizeResponse(_message.Message):
    __slots__ = ("progress", "result")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    progress: OptimizeProgress
    result: OptimizeResult
    def __init__(self, progress: _Optional[_Union[OptimizeProgress, _Mapping]] = ..., result: _Optional[_Union[OptimizeResult, _Mapping]] = ...) -> None: ...

class OptimizeProgress(_message.Message):
    __slots__ = ("step", "steps", "values", "images")
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    step: int
    steps: int
    values: Array
    images: Array
    def __init__(self, step: _Optional[int] = ..., steps: _Optional[int] = ..., values: _Optional[_Union[Array, _Mapping]] = ..., images: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...

class OptimizeResult(_message.Message):
    __slots__ = ("images", "responses", "values", "trace", "twins", "defaults", "record", "warnings")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    TWINS_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    images: Array
    responses: Array
    values: Array
    trace: Array
    twins: _containers.RepeatedCompositeFieldContainer[TwinIdentity]
    defaults: _containers.RepeatedScalarFieldContainer[str]
    record: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, images: _Optional[_Union[Array, _Mapping]] = ..., responses: _Optional[_Union[Array, _Mapping]] = ..., values: _Optional[_Union[Array, _Mapping]] = ..., trace: _Optional[_Union[Array, _Mapping]] = ..., twins: _Optional[_Iterable[_Union[TwinIdentity, _Mapping]]] = ..., defaults: _Optional[_Iterable[str]] = ..., record: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "field", "request_id")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    field: str
    request_id: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ListMiceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListMiceResponse(_message.Message):
    __slots__ = ("twins",)
    TWINS_FIELD_NUMBER: _ClassVar[int]
    twins: _containers.RepeatedCompositeFieldContainer[TwinSummary]
    def __init__(self, twins: _Optional[_Iterable[_Union[TwinSummary, _Mapping]]] = ...) -> None: ...

class TwinSummary(_message.Message):
    __slots__ = ("twin", "description", "synthetic", "neurons", "native_size", "stimulus_size", "behavior", "pupil_center", "takes_raw", "graphs", "device", "required", "no_gradient", "newer_refused")
    TWIN_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    SYNTHETIC_FIELD_NUMBER: _ClassVar[int]
    NEURONS_FIELD_NUMBER: _ClassVar[int]
    NATIVE_SIZE_FIELD_NUMBER: _ClassVar[int]
    STIMULUS_SIZE_FIELD_NUMBER: _ClassVar[int]
    BEHAVIOR_FIELD_NUMBER: _ClassVar[int]
    PUPIL_CENTER_FIELD_NUMBER: _ClassVar[int]
    TAKES_RAW_FIELD_NUMBER: _ClassVar[int]
    GRAPHS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    NO_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    NEWER_REFUSED_FIELD_NUMBER: _ClassVar[int]
    twin: TwinIdentity
    description: str
    synthetic: bool
    neurons: int
    native_size: Size
    stimulus_size: Size
    behavior: _containers.RepeatedScalarFieldContainer[str]
    pupil_center: _containers.RepeatedScalarFieldContainer[str]
    takes_raw: bool
    graphs: _containers.RepeatedScalarFieldContainer[str]
    device: str
    required: _containers.RepeatedScalarFieldContainer[str]
    no_gradient: str
    newer_refused: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, twin: _Optional[_Union[TwinIdentity, _Mapping]] = ..., description: _Optional[str] = ..., synthetic: bool = ..., neurons: _Optional[int] = ..., native_size: _Optional[_Union[Size, _Mapping]] = ..., stimulus_size: _Optional[_Union[Size, _Mapping]] = ..., behavior: _Optional[_Iterable[str]] = ..., pupil_center: _Optional[_Iterable[str]] = ..., takes_raw: bool = ..., graphs: _Optional[_Iterable[str]] = ..., device: _Optional[str] = ..., required: _Optional[_Iterable[str]] = ..., no_gradient: _Optional[str] = ..., newer_refused: _Optional[_Iterable[str]] = ...) -> None: ...

class GetMouseRequest(_message.Message):
    __slots__ = ("twin",)
    TWIN_FIELD_NUMBER: _ClassVar[int]
    twin: TwinRef
    def __init__(self, twin: _Optional[_Union[TwinRef, _Mapping]] = ...) -> None: ...

class Mouse(_message.Message):
    __slots__ = ("summary", "unit_ids", "cell_motor_coordinates", "receptive_field_center", "receptive_field_size", "statistics", "output_units", "graphs", "source", "source_sha256", "licence", "built_with", "truth")
    class GraphsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: GraphReport
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[GraphReport, _Mapping]] = ...) -> None: ...
    class BuiltWithEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class TruthEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Array
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    UNIT_IDS_FIELD_NUMBER: _ClassVar[int]
    CELL_MOTOR_COORDINATES_FIELD_NUMBER: _ClassVar[int]
    RECEPTIVE_FIELD_CENTER_FIELD_NUMBER: _ClassVar[int]
    RECEPTIVE_FIELD_SIZE_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_UNITS_FIELD_NUMBER: _ClassVar[int]
    GRAPHS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_SHA256_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    BUILT_WITH_FIELD_NUMBER: _ClassVar[int]
    TRUTH_FIELD_NUMBER: _ClassVar[int]
    summary: TwinSummary
    unit_ids: Array
    cell_motor_coordinates: Array
    receptive_field_center: Array
    receptive_field_size: Size
    statistics: Statistics
    output_units: str
    graphs: _containers.MessageMap[str, GraphReport]
    source: str
    source_sha256: str
    licence: str
    built_with: _containers.ScalarMap[str, str]
    truth: _containers.MessageMap[str, Array]
    def __init__(self, summary: _Optional[_Union[TwinSummary, _Mapping]] = ..., unit_ids: _Optional[_Union[Array, _Mapping]] = ..., cell_motor_coordinates: _Optional[_Union[Array, _Mapping]] = ..., receptive_field_center: _Optional[_Union[Array, _Mapping]] = ..., receptive_field_size: _Optional[_Union[Size, _Mapping]] = ..., statistics: _Optional[_Union[Statistics, _Mapping]] = ..., output_units: _Optional[str] = ..., graphs: _Optional[_Mapping[str, GraphReport]] = ..., source: _Optional[str] = ..., source_sha256: _Optional[str] = ..., licence: _Optional[str] = ..., built_with: _Optional[_Mapping[str, str]] = ..., truth: _Optional[_Mapping[str, Array]] = ...) -> None: ...

class Moments(_message.Message):
    __slots__ = ("mean", "std")
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    mean: _containers.RepeatedScalarFieldContainer[float]
    std: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, mean: _Optional[_Iterable[float]] = ..., std: _Optional[_Iterable[float]] = ...) -> None: ...

class Statistics(_message.Message):
    __slots__ = ("images", "behavior", "pupil_center", "responses")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    BEHAVIOR_FIELD_NUMBER: _ClassVar[int]
    PUPIL_CENTER_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    images: Moments
    behavior: Moments
    pupil_center: Moments
    responses: Moments
    def __init__(self, images: _Optional[_Union[Moments, _Mapping]] = ..., behavior: _Optional[_Union[Moments, _Mapping]] = ..., pupil_center: _Optional[_Union[Moments, _Mapping]] = ..., responses: _Optional[_Union[Moments, _Mapping]] = ...) -> None: ...

class GraphReport(_message.Message):
    __slots__ = ("opset", "parity_max_abs_error", "parity_tolerance", "replay_error", "parity_gradient_error", "parity_gradient_tolerance", "replay_tolerance", "replay_gradient_tolerance", "not_on_device")
    OPSET_FIELD_NUMBER: _ClassVar[int]
    PARITY_MAX_ABS_ERROR_FIELD_NUMBER: _ClassVar[int]
    PARITY_TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    REPLAY_ERROR_FIELD_NUMBER: _ClassVar[int]
    PARITY_GRADIENT_ERROR_FIELD_NUMBER: _ClassVar[int]
    PARITY_GRADIENT_TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    REPLAY_TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    REPLAY_GRADIENT_TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    NOT_ON_DEVICE_FIELD_NUMBER: _ClassVar[int]
    opset: int
    parity_max_abs_error: float
    parity_tolerance: float
    replay_error: float
    parity_gradient_error: float
    parity_gradient_tolerance: float
    replay_tolerance: float
    replay_gradient_tolerance: float
    not_on_device: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, opset: _Optional[int] = ..., parity_max_abs_error: _Optional[float] = ..., parity_tolerance: _Optional[float] = ..., replay_error: _Optional[float] = ..., parity_gradient_error: _Optional[float] = ..., parity_gradient_tolerance: _Optional[float] = ..., replay_tolerance: _Optional[float] = ..., replay_gradient_tolerance: _Optional[float] = ..., not_on_device: _Optional[_Iterable[str]] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: bytes
    error: Error
    def __init__(self, response: _Optional[bytes] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...
