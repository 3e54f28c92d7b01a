"""`EnergyModel`: a compiled energy graph, as a torch module that owns the parameters."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from physnet.codegen import generate, load
from physnet.costs import Target
from physnet.domains import Interval
from physnet.elements import Node
from physnet.errors import DeclarationError, RelaxationError, ShapeError
from physnet.graph import EnergyGraph
from physnet.hardware import PERFECT, Chip
from physnet.kept import written
from physnet.layers import Layers, prediction_layers
from physnet.layout import arranged
from physnet.lowering import lower
from physnet.parameters import ParameterSpec
from physnet.plans import Plan
from physnet.printing import elementwise
from physnet.problem import Problem, State
from physnet.randomness import stream
from physnet.spectral import separating


class _Holder(nn.Module):
    """The parameters of one node or edge."""


class EnergyModel(nn.Module):
    """E(states; parameters) of a graph, with everything that follows from it.

    Made by `compile_energy`. Its parameters are named `node.b`, `edge.w`, as in the declaration.

    Arguments:
        plan: the intermediate form of the graph.
        seed: initial parameters are a pure function of it.
    """

    chip: Chip = PERFECT
    """What the network runs on."""

    def __init__(self, plan: Plan, seed: int = 0) -> None:
        super().__init__()
        self.plan, self.graph = plan, plan.graph
        self.source = generate(plan)
        self._load()
        self.initialise(seed)

    def initialise(self, seed: int) -> None:
        """Draw all parameters anew, on the CPU and in the default dtype: a pure function of the seed."""
        self._verified: dict[str, tuple[int, int]] = {}  # what check_constraints has seen: address and version
        tensors = self.graph.tensors()
        late = [name for name, (spec, _, _) in tensors.items() if spec.spectral]
        for name, (spec, shape, fans) in tensors.items():
            drawn = torch.zeros(shape) if name in late else spec.draw(shape, fans, stream(seed, "init", name))
            self._set(name, spec, drawn)
        directions = separating(self) if late else {}
        for name in late:
            spec, shape, fans = tensors[name]
            found = directions.get(name.split(".")[0])
            direction = None if found is None or tuple(found.shape) != shape else found
            self._set(name, spec, spec.draw(shape, fans, stream(seed, "init", name), direction=direction))

    def _set(self, name: str, spec: ParameterSpec, value: Tensor) -> None:
        # set directly, because a node may be called like an attribute of a module
        owner, key = name.split(".")
        holder = self._modules.setdefault(owner, _Holder())
        assert holder is not None
        parameter = nn.Parameter(value.to(torch.get_default_dtype()), requires_grad=not spec.frozen)
        holder._parameters[key] = parameter

    def _load(self) -> None:
        self.functions = load(self.plan, self.source)
        self._encoders: dict[str, list[Callable[[Tensor], Tensor]]] = {
            node.name: [elementwise(code) for code in node.encode] for node in self.graph.nodes()
        }

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry the source, not the functions made of it."""
        return {
            key: value for key, value in self.__dict__.items() if key not in ("functions", "_encoders", "_verified")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._verified = {}
        self._load()

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """All parameters by name."""
        return {
            f"{owner}.{key}": value
            for owner, holder in self._modules.items()
            if holder is not None
            for key, value in holder._parameters.items()
            if value is not None
        }

    @property
    def physical(self) -> dict[str, Tensor]:
        """What the energy reads: all parameters as the chip has them, differentiable in those that are programmed."""
        return self.chip.view(self.tensors)

    def mount(self, chip: Chip) -> None:
        """Put the network on a chip; parameters beyond its bounds are moved there."""
        self.chip = chip
        self.__dict__.pop("_constrained", None)
        self._verified = {}
        self.project_parameters()

    def read(self, states: Mapping[str, Tensor]) -> State:
        """States as they are read out: those of output nodes on the levels of the chip."""
        outputs = {target.node for target in self.targets.values()}
        read = {node: self.chip.read(states[node], self.graph.node(node).domain) for node in outputs}
        return {**states, **read}

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters()), torch.empty(0)).device

    @property
    def dtype(self) -> torch.dtype:
        """That of parameters and states."""
        return next(iter(self.parameters()), torch.empty(0)).dtype

    @cached_property
    def free(self) -> tuple[str, ...]:
        """Names of the free nodes, in the order in which a signal from the inputs reaches them."""
        return tuple(self.plan.nodes)

    @cached_property
    def predictions(self) -> Layers | str:
        """The layers of an energy that is made of predictions alone, or why it isn't."""
        return prediction_layers(self.plan)

    @cached_property
    def inputs(self) -> dict[str, Node]:
        """The clamped nodes by name."""
        return {node.name: node for node in self.graph.nodes() if not node.free}

    @cached_property
    def targets(self) -> dict[str, Target]:
        """The node or readout that each target refers to."""
        return self.graph.targets()

    def problem(self, rows: int | None = None, **inputs: Tensor) -> Problem:
        """The free problem for a batch: what integrators work on.

        Arguments:
            rows: number of samples; only needed without inputs.
            inputs: by name of the input node, [rows, *data shape].

        Raises:
            ShapeError: for tensors that don't fit.
            RelaxationError: if a parameter violates its constraint.
        """
        clamped, rows = self.clamp(inputs, rows)
        return Problem(self, clamped, rows)

    def clamp(self, inputs: Mapping[str, Tensor], rows: int | None = None) -> tuple[State, int]:
        """The clamped states of a batch, and how many rows it has; see `problem`."""
        self.check_constraints()
        clamped = self.encode(inputs)
        if clamped:
            sizes = {name: value.shape[0] for name, value in clamped.items()}
            if len(set(sizes.values())) != 1:
                raise ShapeError(f"the inputs have different numbers of samples: {sizes}", "give one batch")
            rows = next(iter(sizes.values()))
        if rows is None:
            raise ShapeError("the network has no input, so the number of samples is unknown", "pass rows=")
        return clamped, rows

    def encode(self, inputs: Mapping[str, Tensor]) -> State:
        """Clamped states from what the user gives: checked, in the dtype and on the device of the model, encoded."""
        for name in inputs:
            if name not in self.inputs:
                raise ShapeError(f"there is no input node '{name}'", f"inputs are: {', '.join(self.inputs) or 'none'}")
        like = next(iter(self.parameters()), torch.empty(0))
        clamped: State = {}
        for name, node in self.inputs.items():
            if name not in inputs:
                raise ShapeError(
                    f"the input '{name}' is missing", f"pass {name}=tensor of shape {_rows(node.data_shape)}"
                )
            value = torch.as_tensor(inputs[name])
            if value.dim() == 0 or value.shape[1:].numel() != math.prod(node.data_shape) or value.shape[0] == 0:
                raise ShapeError(
                    f"the input '{name}' has shape {list(value.shape)}", f"it must be {_rows(node.data_shape)}"
                )
            value = value.to(like.dtype if like.numel() else value.dtype, copy=False).to(like.device)
            value = value.reshape(value.shape[0], *node.data_shape)
            clamped[name] = self._encode(name, value)
        return clamped

    def _encode(self, name: str, value: Tensor) -> Tensor:
        encoders = self._encoders[name]
        return arranged(torch.cat([encode(value) for encode in encoders], 1) if encoders else value)

    def decode_gradient(self, name: str, value: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of an input from that of the clamped state that it was encoded to."""
        with torch.enable_grad():
            value = value.detach().requires_grad_()
            shaped = value.to(gradient).reshape(value.shape[0], *self.inputs[name].data_shape)
            return torch.autograd.grad(self._encode(name, shaped), value, gradient)[0]

    def as_targets(self, targets: Mapping[str, Tensor], rows: int) -> State:
        """Targets by name, as [rows, *node]; class indices become one-hot vectors."""
        like = next(iter(self.parameters()), torch.empty(0))
        result: State = {}
        for name, node in self.targets.items():
            if name not in targets:
                raise ShapeError(f"the target '{name}' is missing", f"pass {name}=")
            value = torch.as_tensor(targets[name]).to(like.device)
            if not value.is_floating_point() and value.dim() == 1 and len(node.shape) == 1:
                if int(value.min()) < 0 or int(value.max()) >= node.shape[0]:
                    wrong = int(value.min()) if int(value.min()) < 0 else int(value.max())
                    raise ShapeError(
                        f"the target '{name}' holds class {wrong}",
                        f"'{node.name}' has {node.shape[0]} units",
                    )
                value = nn.functional.one_hot(value.long(), node.shape[0])
            if tuple(value.shape) != (rows, *node.shape):
                raise ShapeError(
                    f"the target '{name}' has shape {list(value.shape)}",
                    f"it must be {[rows, *node.shape]}, or class indices of shape [{rows}]",
                )
            result[name] = value.to(like.dtype if like.numel() else torch.get_default_dtype())
        unknown = set(targets) - set(self.targets)
        if unknown:
            raise ShapeError(
                f"there is no target '{sorted(unknown)[0]}'", f"targets are: {', '.join(self.targets) or 'none'}"
            )
        return result

    def scores(self, states: Mapping[str, Tensor], target: str = "target") -> Tensor:
        """How well each class fits the equilibrium: minus the change of the cost when its one-hot target turns on.

        For squared errors this orders classes as the state or the readout does, and for `cross_entropy` it is that;
        the largest score is the prediction.
        """
        tensors, states, scores = self.physical, self.read(states), list[Tensor]()
        plain = {cost.node for cost in self.graph.costs if cost.target == target and not cost.external}
        for name in self.free:
            if name in plain:
                unit_cost = self.functions[f"unit_cost_{name}"]
                quiet = {other: torch.zeros_like(states[name]) for other in self.targets}
                lit = quiet | {target: torch.ones_like(states[name])}
                scores.append((unit_cost(tensors, states, quiet) - unit_cost(tensors, states, lit)).flatten(1))
        for item in self.plan.external:
            if item.cost.target == target:
                scores.append(item.cost.weight * self.functions[f"scores_{item.index}"](tensors, states))
        return sum(scores[1:], scores[0])

    def check_constraints(self) -> None:
        """Raise `RelaxationError` if a parameter violates its constraint; tensors that didn't change aren't read.

        A change through `.data`, which torch doesn't count, goes unnoticed.
        """
        for name, allowed in self._constrained.items():
            value = self.tensors[name]
            if not value.is_inference() and self._verified.get(name) == written(value):
                continue
            if not bool(((value >= allowed.lo) & (value <= allowed.hi)).all()):
                raise RelaxationError(
                    f"the parameter {name} violates its constraint {allowed.declaration()}: "
                    "call model.project_parameters() after changing it, or ep.attach(optimizer)"
                )
            if not value.is_inference():
                self._verified[name] = written(value)

    @cached_property
    def _constrained(self) -> dict[str, Interval]:
        """Where parameters have to stay, by the energy or by the chip."""
        specs = {name: spec for name, (spec, _, _) in self.graph.tensors().items()}
        allowed = {name: spec.constraint for name, spec in specs.items() if spec.constraint is not None}
        return allowed | dict(self.chip.bounds)

    @torch.no_grad()
    def project_parameters(self) -> None:
        """Move every constrained parameter to the nearest value that is allowed."""
        for name, allowed in self._constrained.items():
            value = self.tensors[name]
            value.clamp_(allowed.lo, allowed.hi)
            self._verified[name] = written(value)

    def _repr_html_(self) -> str:
        return importlib.import_module("physnet.notebook").html(self)

    def _repr_markdown_(self) -> str:
        return importlib.import_module("physnet.notebook").markdown(self)

    def extra_repr(self) -> str:
        return repr(self.graph)


def _rows(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(('rows', *map(str, shape)))}]"


def check_model(model: object, where: str) -> None:
    """Raise `DeclarationError` if something else than a compiled model was given."""
    if not isinstance(model, EnergyModel):
        found = "an EnergyGraph" if isinstance(model, EnergyGraph) else f"a {type(model).__name__}"
        raise DeclarationError(f"{where} takes a compiled energy, not {found}", "model = compile_energy(graph)")


def compile_energy(graph: EnergyGraph, seed: int = 0) -> EnergyModel:
    """Turn a declared energy into a module that can be relaxed and trained.

    Arguments:
        graph: the declaration.
        seed: initial parameters are a pure function of it.

    Raises:
        DeclarationError: with everything that is wrong with the graph.
    """
    if not isinstance(graph, EnergyGraph):
        raise DeclarationError(f"compile_energy takes an EnergyGraph, not {graph!r}", "such as EnergyGraph('hopfield')")
    plan = lower(graph)
    for message in plan.warnings:
        warnings.warn(message, stacklevel=2)
    return EnergyModel(plan, seed)
