"""The schema of experiment files: which keys there are, and what their defaults are.

What the values mean is decided where they are used; this is also what editors complete and check against.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from physnet.energy import FORMAT


def _shown(**schema: Any) -> WithJsonSchema:
    """What editors are told about a value that the graph checks itself."""
    return WithJsonSchema(schema)


_Expression = Annotated[Any, _shown(type=["string", "number"], description="an expression, such as x**2/2 - b*x")]
_Encoding = Annotated[
    Any, _shown(type=["string", "array"], description="expressions in x, stacked along the first axis")
]
_Shape = Annotated[
    Any,
    _shown(anyOf=[{"type": "integer", "minimum": 1}, {"type": "array", "items": {"type": "integer", "minimum": 1}}]),
]
_Domain = Annotated[
    Any,
    _shown(
        type=["string", "array", "object"],
        description="real, nonnegative, nonpositive, circle, another name (physnet list), [lo, hi], or parts",
    ),
]
_TimeConstant = Annotated[
    Any, _shown(type="number", exclusiveMinimum=0, description="time constant: tau dx/dt = -dF/dx, 1 by default")
]
_Initial = Annotated[
    Any,
    _shown(
        type=["string", "number"],
        description="where the states of every sample start, such as pi/2 or uniform(-pi, pi); default: relax.initial",
    ),
]
_Energy = Annotated[
    Any,
    _shown(
        type=["string", "object"],
        description="an entry of the catalogue, a YAML file, or node, coupling, domain, parameters",
    ),
]
_Edge = Annotated[
    Any, _shown(type=["string", "object"], description="'a -> b', or {'a -> b': connection or {via, name, gain, ...}}")
]
_Parameters = Annotated[Any, _shown(type="object", description="changes to declared parameters, or new ones, by name")]
_Term = Annotated[
    Any, _shown(type=["string", "number"], description="an expression in x and y, or in parameters, or cross_entropy")
]
_Readout = Annotated[Any, _shown(type="string", description="a connection with its end, such as dense(10)")]
_Names = Annotated[Any, _shown(type=["string", "array"], description="a name, or a list of names")]
_Share = Annotated[
    Any, _shown(type="number", exclusiveMinimum=0, description="a number of samples, or a fraction below 1 of them")
]
_Named = Annotated[Any, _shown(type=["string", "object"], description="a name, or {name: {options}}")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class NodeSchema(_Strict):
    """A node: units that share a shape and an energy."""

    shape: _Shape
    role: Literal["input", "state", "output"] = "state"
    domain: _Domain = None
    encode: _Encoding = None
    energy: _Energy = None
    term: _Expression = None
    tau: _TimeConstant = None
    initial: _Initial = None
    parameters: _Parameters = None


class CostSchema(_Strict):
    """One cost: weight times the sum of a term over the units of a node or readout; without a node, a regulariser."""

    node: str | None = None
    term: _Term
    target: str = "target"
    weight: float = 1.0
    readout: _Readout = None
    name: str = ""
    parameters: _Parameters = None
    on: _Names = None


class NudgedSchema(_Strict):
    """How a nudged phase relaxes; it starts from the free equilibrium."""

    integrator: str = "auto"
    tolerance: float | None = Field(default=None, gt=0)
    max_sweeps: int = Field(default=1000, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)


class RelaxSchema(NudgedSchema):
    """How a phase relaxes."""

    initial: Literal["zero", "forward", "random", "previous"] = "zero"


class LearnSchema(_Strict):
    """How gradients are estimated."""

    protocol: str = Field(default="centered", description="a protocol, a reference, or a method such as backprop")
    beta: float = Field(default=0.1, gt=0)
    starts: int | None = Field(default=None, ge=1, description="random starts of every sample; default: 1")
    nudged: NudgedSchema | None = None
    options: dict[str, Any] = Field(default_factory=dict, description="settings of a method, such as {alpha: 0.5}")


class CheckpointSchema(_Strict):
    """When a checkpoint is written, besides at the end of every epoch."""

    seconds: float = Field(default=60.0, gt=0, description="after so many seconds; .inf for never")
    steps: int | None = Field(default=None, ge=1, description="after so many steps of the optimizer")


class TrainSchema(_Strict):
    """How the network is trained, and on what."""

    data: _Named = "digits"
    augment: list[_Named] = Field(default_factory=list, description="random changes of training images, in their order")
    epochs: int = Field(default=10, ge=1)
    batch: int = Field(default=64, ge=1)
    optimizer: _Named = "sgd"
    scheduler: _Named = None
    rates: dict[str, float] = Field(default_factory=dict, description="learning rates of single tensors, by name")
    seed: int = Field(default=0, ge=0, lt=2**63)
    parameters: str | None = Field(
        default=None, description="a run, or a .safetensors file, whose parameters are there to begin with"
    )
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    workers: int | None = Field(
        default=None,
        ge=0,
        description="processes that read images of sets that aren't in memory; default: by cores",
    )
    top: int | None = Field(
        default=None, ge=1, description="also count errors among so many best classes; default: 5 above 20 classes"
    )
    precision: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="of the products of backprop methods; default: that of dtype"
    )
    validation: _Share = None
    methods: dict[str, dict[str, Any]] | None = Field(
        default=None, description="keys of train that are different where learn.protocol has this name"
    )
    clip: float | None = Field(default=None, gt=0, description="bound on the norm of the whole gradient")
    accumulate: int = Field(default=1, ge=1, description="batches whose gradients make one step of the optimizer")
    checkpoint: CheckpointSchema = Field(default_factory=lambda: CheckpointSchema())
    tensorboard: bool = False


class SimulateSchema(_Strict):
    """How `physnet simulate` follows the network in time; learning doesn't depend on it."""

    duration: float | None = Field(default=None, gt=0, description="in the unit of tau; default: until all has settled")
    times: int = Field(default=101, ge=2, description="how many times are recorded")
    samples: int = Field(default=8, ge=1, description="test samples, or random starts where there is no input")
    accuracy: float = Field(default=1e-6, ge=1e-13, lt=1, description="relative error of a step")
    method: Literal["dopri5", "LSODA", "BDF", "Radau"] = "dopri5"
    animate: bool = Field(default=False, description="whether to write an animation of the phases of oscillators")


class NoiseSchema(_Strict):
    """White noise in the dynamics: dx = -(1/tau) dF/dx dt + strength dW."""

    strength: float = Field(ge=0, description="of the kicks, in states per square root of the unit of tau")
    duration: float = Field(default=10.0, gt=0, description="how long it acts on a state that has settled")
    step: float | None = Field(default=None, gt=0, description="of time; default: found from the curvature")


_Positive = Annotated[float, Field(ge=0)]
_Bits = Annotated[int, Field(ge=1, le=24)]
_Range = Annotated[list[float], Field(min_length=2, max_length=2)]
_POSITIVE = {"type": "number", "minimum": 0}
_BITS = {"type": "integer", "minimum": 1, "maximum": 24}
_RANGE = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}


def _for_all(**one: Any) -> tuple[BeforeValidator, WithJsonSchema]:
    """A mapping by tensor, in whose place a single value for all tensors may stand."""
    wrap = BeforeValidator(lambda value: value if value is None or isinstance(value, dict) else {"*": value})
    return wrap, _shown(anyOf=[one, {"type": "object", "additionalProperties": one}])


_ByTensor = Annotated[dict[str, _Positive], *_for_all(**_POSITIVE)]
_BitsByTensor = Annotated[dict[str, _Bits], *_for_all(**_BITS)]
_RangeByTensor = Annotated[dict[str, _Range], *_for_all(**_RANGE)]
_Noise = Annotated[
    NoiseSchema | None,
    BeforeValidator(
        lambda value: value if value is None or isinstance(value, dict | NoiseSchema) else {"strength": value}
    ),
    _shown(anyOf=[_POSITIVE, NoiseSchema.model_json_schema()], description="white noise: its strength, or more"),
]


class HardwareSchema(_Strict):
    """The device that the network runs on. Keys of mappings are names of tensors, in which * stands for anything."""

    chip: int = Field(default=0, ge=0, lt=2**63, description="which specimen: what is frozen in it is drawn from this")
    mismatch: _ByTensor = Field(
        default_factory=dict, description="parameters are multiplied by 1 + mismatch xi, xi normal, one for each entry"
    )
    dispersion: _ByTensor = Field(
        default_factory=dict, description="dispersion xi is added to parameters, in their unit"
    )
    bounds: _RangeByTensor = Field(default_factory=dict, description="parameters are kept within [lo, hi]")
    bits: _BitsByTensor = Field(default_factory=dict, description="parameters have at most 2**bits levels")
    readout_bits: _Bits | None = Field(default=None, description="states of output nodes are read on 2**bits levels")
    readout_range: _Range | None = Field(default=None, description="where these levels lie; default: the domain")
    noise: _Noise = None


class ExperimentSchema(_Strict):
    """A whole experiment: a network, how it learns, and what it is trained on."""

    physnet: int = Field(default=FORMAT, description="version of the format")
    name: str = ""
    energy: _Energy = None
    nodes: dict[str, NodeSchema]
    edges: list[_Edge] = Field(default_factory=list)
    cost: _Expression = None
    costs: list[CostSchema] = Field(default_factory=list)
    relax: RelaxSchema = Field(default_factory=lambda: RelaxSchema())
    learn: LearnSchema = Field(default_factory=lambda: LearnSchema())
    train: TrainSchema = Field(default_factory=lambda: TrainSchema())
    simulate: SimulateSchema = Field(default_factory=lambda: SimulateSchema())
    hardware: HardwareSchema = Field(default_factory=lambda: HardwareSchema())


def keys_at(path: tuple[str | int, ...]) -> list[str]:
    """The keys that the schema knows at a path."""
    schema: type[BaseModel] | None = ExperimentSchema
    for key in path:
        if schema is not None and key in schema.model_fields:
            schema = _model_in(schema.model_fields[str(key)].annotation)
    return [] if schema is None else list(schema.model_fields)


def places_of(key: str, schema: type[BaseModel] = ExperimentSchema) -> list[str]:
    """Where a key stands in an experiment, by dotted path; `*` is the name of a node, or the number of a cost."""
    places = [key] if key in schema.model_fields else []
    for name, field in schema.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None:
            items = ".*" if get_origin(field.annotation) in (dict, list) else ""
            places += [f"{name}{items}.{place}" for place in places_of(key, inner)]
    return places


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The schema of a value, or of its items."""
    found = (item for item in (annotation, *get_args(annotation)) if isinstance(item, type))
    return next((item for item in found if issubclass(item, BaseModel)), None)


def json_schema() -> dict[str, Any]:
    """The JSON schema of experiment files, for editors."""
    return ExperimentSchema.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}
