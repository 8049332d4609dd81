"""What optimizers do with a gradient, as far as a comparison between processors needs to know (spec §6, V10, test 2).

An optimizer whose update is elementwise computes, from the same state and the same gradient, the same numbers up to a
few roundings on every processor: vectorised kernels fuse a product and a sum into one rounding, scalar ones do not.
So the update has a bound that no forger gets anywhere in. Where an update contains reductions or matrix products, or
its parameters have 16 bits, where two roundings are 0.8 % of a weight, nothing but equality is meaningful.

The bounds are for one application of the optimizer, not for what `apply` does besides: a recipe that changes weights
by reductions of its own says how far apart they may come out (`Recipe.UPDATE_BOUNDS`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from polcommit.records import StateIndex, TensorEntry
from polcommit.training.recipe import Recipe
from polcommit.training.replay import first_difference
from polcommit.training.schema import Fetch, opened_tensor
from polcommit.training.state import Captured, TrainingState
from polcommit.training.step import named_parameters

PARAMETER_EPS = 2.0     # of the tensor's largest magnitude
SLOT_ULPS = 4.0         # at the scale of each element
COUPLED_ULPS = 2.0      # more, where a weight decay was added to the gradient before it was squared
DELTA_ULPS = 16.0       # of Adadelta's squared updates, each the square of a quotient of roots

_O = torch.optim
#: Optimizers whose update is elementwise, and their floating slots. 'step' and whatever is integer must be equal.
ELEMENTWISE: dict[type[torch.optim.Optimizer], frozenset[str]] = {
    _O.SGD: frozenset({"momentum_buffer"}),
    _O.Adam: frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
    _O.AdamW: frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
    _O.Adamax: frozenset({"exp_avg", "exp_inf"}),
    _O.NAdam: frozenset({"exp_avg", "exp_avg_sq", "mu_product"}),
    _O.RAdam: frozenset({"exp_avg", "exp_avg_sq"}),
    _O.Adagrad: frozenset({"sum"}),
    _O.RMSprop: frozenset({"square_avg", "momentum_buffer"}),
    _O.Adadelta: frozenset({"square_avg", "acc_delta"}),
}
_FIRST = frozenset({"momentum_buffer", "exp_avg"})      # moments of the gradient itself, at its scale too
_EXACT = frozenset({"step"})


@dataclass(frozen=True, slots=True)
class Applied:
    """What the optimizer was given for one parameter: the gradient, unscaled and clipped, and the group's settings."""

    gradient: torch.Tensor              # a copy, on the CPU
    settings: Mapping[str, Any]         # of the group, less its parameters, when it stepped


def no_bound(recipe: Recipe, state: TrainingState) -> str | None:
    """Why the optimizer's update has no bound; None where it has one, of its own or declared by the recipe."""
    for name, parameter in sorted(named_parameters(state.model).items()):
        if parameter.requires_grad and parameter.dtype not in (torch.float32, torch.float64):
            return f"parameter {name} is {str(parameter.dtype).removeprefix('torch.')}"
    if recipe.UPDATE_BOUNDS:
        return None
    kind = type(state.optimizer)
    if kind not in ELEMENTWISE:
        return f"the update of optimizer {kind.__name__} has no known bound"
    if any(group.get("centered") for group in state.optimizer.param_groups):
        return f"the update of optimizer {kind.__name__}, centered, has no known bound"
    return None


def watch(optimizer: torch.optim.Optimizer, found: dict[int, Applied]) -> Any:
    """Fill `found`, by id of the parameter, with what the optimizer is given when it steps; returns a handle."""

    def take(stepping: torch.optim.Optimizer, *_: object) -> None:
        scale = getattr(stepping, "grad_scale", None)       # a fused optimizer unscales by itself
        for group in stepping.param_groups:
            settings = {key: value for key, value in group.items() if key != "params"}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    gradient = parameter.grad.detach().to("cpu", copy=True)
                    if scale is not None:
                        gradient /= scale.to("cpu")
                    found[id(parameter)] = Applied(gradient, settings)

    return optimizer.register_step_pre_hook(take)


def preconditioner(slots: Mapping[str, Any], settings: Mapping[str, Any]) -> torch.Tensor | None:
    """D of an adaptive optimizer, which multiplies the gradient: 1/(√v̂ + ε), float64 on the CPU; None of any other.

    `slots` is the optimizer's state of a parameter after a step. RAdam's first steps, which it takes without, are
    not told apart.
    """
    eps = float(settings.get("eps", 0.0))
    squares = slots.get("max_exp_avg_sq", slots.get("exp_avg_sq"))
    if squares is not None:
        correction = 1.0 - float(settings["betas"][1]) ** float(slots["step"])
        return 1.0 / ((_double(squares) / correction).sqrt() + eps)
    if "exp_inf" in slots:
        return 1.0 / _double(slots["exp_inf"])
    if "acc_delta" in slots:
        return ((_double(slots["acc_delta"]) + eps) / (_double(slots["square_avg"]) + eps)).sqrt()
    squares = slots.get("square_avg", slots.get("sum"))
    return None if squares is None else 1.0 / (_double(squares).sqrt() + eps)


def multiplier(settings: Mapping[str, Any]) -> float:
    """What one unit of a (preconditioned) gradient moves a weight by, all later steps included: lr/(1 - μ).

    The first moment of Adam and its kin is an average, not a sum, so there it is lr.
    """
    remaining = 1.0 - float(settings.get("momentum", 0.0))
    return float(settings["lr"]) / remaining if remaining > 0 else math.inf


# --- the update -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """`apply` on an opened gradient, to be compared with the opened state after the step."""

    recipe: Recipe
    state: TrainingState                # as `apply` left it
    captured: Captured                  # the same, hashed
    applied: Mapping[str, Applied]      # by parameter name
    before: StateIndex                  # opened
    after: StateIndex                   # opened
    fetch: Fetch

    def exact(self) -> str | None:
        """The first thing, by name, that differs and must not: form, integer, counter, setting, untouched tensor."""
        opened = {entry.name: entry for entry in self.after.tensors}
        here = {entry.name: entry for entry in self.captured.index.tensors}
        for name in sorted(opened.keys() | here.keys()):
            if name not in opened or name not in here:
                return f"tensor {name}, which is on one side only"
            if opened[name] != here[name] and self._must_be_equal(here[name]):
                return f"tensor {name}"
        return first_difference(replace(self.after, tensors=()), replace(self.captured.index, tensors=()))

    def worst(self) -> tuple[str, float]:
        """The tensor that is furthest from what it must be, and its deviation by what is allowed: above 1 refutes."""
        before = {entry.name: entry for entry in self.before.tensors}
        opened = {entry.name: entry for entry in self.after.tensors}
        worst = ("", 0.0)
        for entry in self.captured.index.tensors:
            other = opened.get(entry.name)
            if other is None or other.content == entry.content or not self._has_bound(entry):
                continue
            ratio = self._deviation(entry, before.get(entry.name), other)
            if not ratio <= worst[1]:
                worst = (entry.name, ratio)
        return worst

    def _has_bound(self, entry: TensorEntry) -> bool:
        return entry.kind in ("parameter", "optimizer") and not self._must_be_equal(entry)

    def _must_be_equal(self, entry: TensorEntry) -> bool:
        """Everything but floating buffers, which the forward pass changes, and what the optimizer updates."""
        tensor = self.captured.tensors[entry.name]
        if not tensor.is_floating_point():
            return True
        if entry.kind == "buffer":
            return False
        known = type(self.state.optimizer) in ELEMENTWISE or not self.recipe.UPDATE_BOUNDS
        bounded = _key(entry) in self.recipe.UPDATE_BOUNDS or (known and _key(entry) not in _EXACT)
        return entry.kind == "other" or _owner(entry) not in self.applied or not bounded

    def _deviation(self, entry: TensorEntry, before: TensorEntry | None, after: TensorEntry) -> float:
        here = _double(self.captured.tensors[entry.name])
        new = opened_tensor(after, self.fetch).double()
        old = torch.zeros_like(new) if before is None else opened_tensor(before, self.fetch).double()
        eps = torch.finfo(self.captured.tensors[entry.name].dtype).eps
        tiny = torch.finfo(self.captured.tensors[entry.name].dtype).smallest_normal * eps
        largest = _largest(old, new)
        declared = self.recipe.UPDATE_BOUNDS.get(_key(entry))
        if declared is not None:
            allowed = torch.tensor(declared * largest + tiny, dtype=torch.float64)
        elif entry.kind == "parameter":
            allowed = PARAMETER_EPS * eps * largest + tiny + SLOT_ULPS * eps * self._cancelled(entry)
        else:
            allowed = self._ulps(entry) * (eps * self._scale(entry, old, new) + tiny)
        same = (here == new) | (here.isnan() & new.isnan())
        ratios = torch.where(same, 0.0, (here - new).abs() / allowed)
        found = float(ratios.max()) if ratios.numel() else 0.0
        return math.inf if math.isnan(found) else found

    def _ulps(self, entry: TensorEntry) -> float:
        if _key(entry) == "acc_delta":
            return DELTA_ULPS
        return SLOT_ULPS + (COUPLED_ULPS if self._decay(entry) and _key(entry) not in _FIRST else 0.0)

    def _scale(self, entry: TensorEntry, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Magnitude of each element that its roundings are relative to."""
        scale = torch.maximum(old.abs(), new.abs())
        applied = self.applied[_owner(entry)]
        if applied.gradient.shape != scale.shape:       # a scalar, such as NAdam's product
            return scale
        gradient = applied.gradient.double().abs()
        if _key(entry) in _FIRST:
            return torch.maximum(scale, gradient)
        coupled = self._coupled(entry)
        return torch.maximum(scale, _share(applied.settings) * (gradient + coupled) * coupled)

    def _cancelled(self, entry: TensorEntry) -> torch.Tensor:
        """What a rounding of the decay amounts to in a parameter where it cancels the gradient, and D is large."""
        applied = self.applied[_owner(entry)]
        slots = self.state.optimizer.state.get(named_parameters(self.state.model)[_owner(entry)], {})
        scale = preconditioner(slots, applied.settings) if slots else None
        if scale is None:
            return torch.zeros((), dtype=torch.float64)
        return (multiplier(applied.settings) * scale * self._coupled(entry)).nan_to_num(0.0, 0.0)

    def _coupled(self, entry: TensorEntry) -> torch.Tensor:
        """Magnitude of the weight decay that was added to each element of the gradient."""
        decay, name = self._decay(entry), f"parameter/{_owner(entry)}"
        if not decay:
            return torch.zeros((), dtype=torch.float64)
        before = next(found for found in self.before.tensors if found.name == name)
        return decay * opened_tensor(before, self.fetch).double().abs()

    def _decay(self, entry: TensorEntry) -> float:
        """The coupled weight decay; 0 of an optimizer that applies it to the weights directly."""
        settings = self.applied[_owner(entry)].settings
        return 0.0 if settings.get("decoupled_weight_decay") else float(settings.get("weight_decay", 0.0))


def _owner(entry: TensorEntry) -> str:
    """The parameter that a tensor is, or belongs to."""
    name = entry.name.partition("/")[2]
    return name.rpartition("/")[0] if entry.kind == "optimizer" else name


def _key(entry: TensorEntry) -> str:
    """The slot's key; 'parameter' of a parameter."""
    return entry.name.rpartition("/")[2] if entry.kind == "optimizer" else entry.kind


def _share(settings: Mapping[str, Any]) -> float:
    """How much of the new square goes into the second moment."""
    decay = settings["betas"][1] if "betas" in settings else settings.get("alpha", settings.get("rho", 0.0))
    return 1.0 - float(decay)


def _largest(*tensors: torch.Tensor) -> float:
    """The largest magnitude among the finite elements; 0 where there is none."""
    return max((float(t.nan_to_num(0.0, 0.0, 0.0).abs().max()) for t in tensors if t.numel()), default=0.0)


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float64)
