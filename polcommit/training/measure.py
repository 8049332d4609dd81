"""One step compared in gradient space: what the prover opened, and what this machine makes of it (spec §6, V10).

The step is re-executed from the opened state up to its gradient g′. Then the opened gradient ĝ takes its place, and
`apply` runs on that: the first half is compared as a vector, the second element by element. Norms and distances are
float64, and one that is not a number is infinite.

Nothing is decided here: how far apart the two may be is the verifier's to say, from a noise profile. An opened
gradient may be hostile: it is compared with the recipe's own parameters before a byte of it is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from polcommit.errors import Refuted
from polcommit.records import Gradient, StateIndex, TensorEntry
from polcommit.replaying import Measured, TensorDistance
from polcommit.training.loading import FetchedBatch
from polcommit.training.optimizers import (
    PARAMETER_EPS,
    SLOT_ULPS,
    Applied,
    Update,
    multiplier,
    no_bound,
    preconditioner,
    watch,
)
from polcommit.training.replay import Engine
from polcommit.training.residuals import norm, number, root
from polcommit.training.schema import Fetch, opened_tensor
from polcommit.training.state import Captured
from polcommit.training.step import GRADIENT, StepResult, gradients, named_parameters
from polcommit.training.tree import dtype_name

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedStep:
    """What was opened of one step, less the bytes, which `fetch` finds by a tensor's entry."""

    step: int
    before: StateIndex
    gradient: Gradient
    after: StateIndex
    last: StateIndex            # W_T of the head
    fetch: Fetch


@dataclass(frozen=True, slots=True, kw_only=True)
class _Execution:
    """A step, re-executed up to its gradient, and finished on the opened one."""

    here: Tensors                           # g′ by parameter name, on the CPU
    opened: Tensors                         # ĝ
    applied: Mapping[str, Applied]          # ĝ as the optimizer was given it
    trained: frozenset[str]                 # parameters that the optimizer holds
    captured: Captured                      # after `apply` on ĝ
    result: StepResult


def measure(engine: Engine, opened: OpenedStep, batch: FetchedBatch) -> tuple[Measured, dict[str, torch.Tensor]]:
    """The comparison, and the residual ĝ - g′ by name of the trained parameter (float64; empty if not comparable).

    The engine's state is afterwards that after the step, with ĝ applied.

    Raises:
        Refuted: V8: gradient or next state have not the recipe's form, or bytes are not those that are named.
        NotReproducible: the recipe's code failed on what was opened.
    """
    engine.schema.check(opened.after)
    done = _execute(engine, opened, batch)
    finite = _finite(done.opened.values()), _finite(done.here.values())
    tensors = tuple(_gradient_distances(done))
    update = Update(
        recipe=engine.recipe,
        state=engine.state,
        captured=done.captured,
        applied=done.applied,
        before=opened.before,
        after=opened.after,
        fetch=opened.fetch,
    )
    scales = _preconditioners(engine, done)
    whole = [found for found in tensors if found.name in done.trained]
    distance = root(found.distance for found in whole)
    # of a skipped overflow nothing came, and in one that was applied the two may differ in where they are finite
    comparable = distance < math.inf and (all(finite) or not done.result.skipped)
    residual = _residual(done) if comparable else {}
    measured = Measured(
        finite=finite,
        missing=tuple(sorted(done.opened.keys() ^ done.here.keys())),
        distance=distance,
        opened=root(found.opened for found in whole),
        here=root(found.here for found in whole),
        preconditioned=_preconditioned(done, scales),
        tensors=tensors,
        buffers=tuple(_buffer_distances(done, opened)),
        update=update.worst(),
        exact=update.exact(),
        exact_only=no_bound(engine.recipe, engine.state),
        towards=_towards(residual, opened),
        stride=0.0 if done.result.skipped else _stride(done, scales),
        rounding=_rounding(engine, done, opened, scales),
        loss=done.result.loss,
        learning_rate=done.result.learning_rate,
        clipped=done.result.clipped,
        skipped=done.result.skipped,
    )
    return measured, residual


def check_gradient(engine: Engine, gradient: Gradient) -> None:
    """Raises Refuted (V8) unless each entry is a parameter's of the recipe, with its dtype and shape."""
    parameters = named_parameters(engine.state.model)
    for entry in gradient.tensors:
        parameter = parameters.get(entry.name.removeprefix(GRADIENT)) if entry.name.startswith(GRADIENT) else None
        if parameter is None:
            expected = "gradients of the recipe's parameters"
            raise Refuted("V8", "gradient", at=gradient.step, expected=expected, found=entry.name[:200])
        due = dtype_name(parameter), tuple(parameter.shape)
        if due != (entry.dtype, entry.shape):
            raise Refuted(
                "V8", f"form of {entry.name}", at=gradient.step, expected=due, found=(entry.dtype, entry.shape)
            )


# --- the execution --------------------------------------------------------------------------------------------


def _execute(engine: Engine, opened: OpenedStep, batch: FetchedBatch) -> _Execution:
    """Restore, compute g′, put ĝ in its place, apply."""
    check_gradient(engine, opened.gradient)
    replacement = {
        entry.name.removeprefix(GRADIENT): opened_tensor(entry, opened.fetch) for entry in opened.gradient.tensors
    }
    here: dict[str, torch.Tensor] = {}
    found: dict[int, Applied] = {}

    def exchange() -> None:
        here.update({name: g.detach().to("cpu", copy=True) for name, g in gradients(engine.state.model).items()})
        for name, parameter in named_parameters(engine.state.model).items():
            parameter.grad = None
            if name in replacement:
                # in the parameter's memory format, as a backward pass leaves it
                parameter.grad = torch.empty_like(parameter).copy_(replacement[name])

    handle = watch(engine.state.optimizer, found)
    try:
        result, captured = engine.replay(opened.before, opened.fetch, batch, between=exchange)
    finally:
        handle.remove()
    parameters = named_parameters(engine.state.model)
    held = {id(parameter) for group in engine.state.optimizer.param_groups for parameter in group["params"]}
    return _Execution(
        here=here,
        opened=replacement,
        applied={name: found[id(p)] for name, p in parameters.items() if id(p) in found},
        trained=frozenset(name for name, parameter in parameters.items() if id(parameter) in held),
        captured=captured,
        result=result,
    )


# --- gradients ------------------------------------------------------------------------------------------------


def _pairs(done: _Execution) -> Iterable[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, ĝ, g′) in float64 of every parameter that has a gradient in either; zero where it has none.

    Zero, too, where both are the same and not finite: that is no distance, and must not hide those of other elements.
    """
    for name in sorted(done.opened.keys() | done.here.keys()):
        form = done.opened.get(name, done.here.get(name))
        assert form is not None
        zero = torch.zeros((), dtype=torch.float64).expand(form.shape)
        there, here = done.opened.get(name, zero).double(), done.here.get(name, zero).double()
        odd = ~there.isfinite() & ((there == here) | (there.isnan() & here.isnan()))
        yield (name, there.masked_fill(odd, 0.0), here.masked_fill(odd, 0.0)) if odd.any() else (name, there, here)


def _gradient_distances(done: _Execution) -> Iterable[TensorDistance]:
    for name, there, here in _pairs(done):
        yield _distance(name, there, here)


def _residual(done: _Execution) -> dict[str, torch.Tensor]:
    return {name: there - here for name, there, here in _pairs(done) if name in done.trained}


def _preconditioned(done: _Execution, scales: Tensors) -> tuple[float, float] | None:
    """(‖D(ĝ-g′)‖, ‖Dĝ‖) over the parameters whose update an adaptive optimizer preconditions."""
    if not scales:
        return None
    pairs = [(there - here, there, scales[name]) for name, there, here in _pairs(done) if name in scales]
    return (
        root(norm(difference * scale) for difference, _, scale in pairs),
        root(norm(there * scale) for _, there, scale in pairs),
    )


def _preconditioners(engine: Engine, done: _Execution) -> dict[str, torch.Tensor]:
    """D by parameter name, as the update of this step used it: from the opened state and ĝ.

    Not from the opened state alone: an element whose first gradient this is has a second moment of zero there, and
    would outweigh all others. Zero where the optimizer was given what is not finite, and made nothing else of it.
    """
    parameters = named_parameters(engine.state.model)
    scales: dict[str, torch.Tensor] = {}
    for name, applied in done.applied.items():
        slots = engine.state.optimizer.state.get(parameters[name], {})
        scale = preconditioner(slots, applied.settings) if slots else None
        if scale is not None:
            scales[name] = scale.masked_fill(~applied.gradient.isfinite(), 0.0)
    return scales


def _stride(done: _Execution, scales: Tensors) -> float:
    """lr·‖ĝ‖/(1-μ), or lr·‖Dĝ‖/(1-μ), of the gradient as the optimizer was given it, over all groups.

    Less what is not finite of it: nobody bends that.
    """
    parts = []
    for name, applied in done.applied.items():
        gradient = applied.gradient.double().masked_fill(~applied.gradient.isfinite(), 0.0)
        parts.append(multiplier(applied.settings) * norm(gradient * scales[name] if name in scales else gradient))
    return root(parts)


def _rounding(engine: Engine, done: _Execution, opened: OpenedStep, scales: Tensors) -> float:
    """‖what test 2 lets each element of each parameter differ by‖: how far a step may be off, unseen.

    The optimizer's own tensors are left out: what their roundings move weights by is a vanishing share of a stride.
    """
    before = {entry.name: entry for entry in opened.before.tensors}
    parameters = named_parameters(engine.state.model)
    declared = engine.recipe.UPDATE_BOUNDS.get("parameter")
    parts = []
    for name, applied in done.applied.items():
        old, new = _double(before[f"parameter/{name}"], opened.fetch), parameters[name].detach()
        eps, largest = torch.finfo(new.dtype).eps, max(_largest(old), _largest(new))
        if declared is not None:
            allowed = torch.tensor(declared * largest, dtype=torch.float64)
        else:
            allowed = PARAMETER_EPS * eps * largest + SLOT_ULPS * eps * _cancelled(old, applied, scales.get(name))
        parts.append(norm(allowed.expand(old.shape)))
    return root(parts)


def _cancelled(old: torch.Tensor, applied: Applied, scale: torch.Tensor | None) -> torch.Tensor:
    """What a coupled weight decay may amount to where it cancels the gradient, and D is large (`optimizers.Update`)."""
    decay = 0.0 if applied.settings.get("decoupled_weight_decay") else float(applied.settings.get("weight_decay", 0.0))
    if scale is None or not decay:
        return torch.zeros((), dtype=torch.float64)
    return (multiplier(applied.settings) * scale * decay * old.abs()).nan_to_num(0.0, 0.0)


def _towards(residual: Tensors, opened: OpenedStep) -> float:
    """Cosine of ĝ - g′ with W_t - W_T, over the trained parameters: 1 where every update is bent towards W_T."""
    before = {entry.name: entry for entry in opened.before.tensors}
    last = {entry.name: entry for entry in opened.last.tensors}
    product = residuals = distances = 0.0
    for name, difference in residual.items():
        path = f"parameter/{name}"
        away = _double(before[path], opened.fetch) - _double(last[path], opened.fetch)
        product += float((difference * away).sum())
        residuals += float(difference.square().sum())
        distances += float(away.square().sum())
    if residuals == 0.0 or distances == 0.0:
        return 0.0
    return number(product / (math.sqrt(residuals) * math.sqrt(distances)))


# --- buffers --------------------------------------------------------------------------------------------------


def _buffer_distances(done: _Execution, opened: OpenedStep) -> Iterable[TensorDistance]:
    """What the step added to each floating buffer: a running mean is mostly what it was."""
    before = {entry.name: entry for entry in opened.before.tensors}
    after = {entry.name: entry for entry in opened.after.tensors}
    for entry in done.captured.index.tensors:
        tensor = done.captured.tensors[entry.name]
        if entry.kind == "buffer" and tensor.is_floating_point():
            old = _double(before[entry.name], opened.fetch)
            there = _double(after[entry.name], opened.fetch) - old
            yield _distance(entry.name.partition("/")[2], there, tensor.to("cpu", torch.float64) - old)


# --- arithmetic -----------------------------------------------------------------------------------------------


def opened_parameters(index: StateIndex, fetch: Fetch) -> dict[str, torch.Tensor]:
    """The floating parameters of an opened state, by entry name."""
    return {
        entry.name: opened_tensor(entry, fetch)
        for entry in index.tensors
        if entry.kind == "parameter" and "float" in entry.dtype
    }


def span(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """‖a - b‖ over the parameters in `a`, which `b` has as well, among others."""
    return root(norm(tensor.double().cpu() - b[name].double().cpu()) for name, tensor in a.items())


def _double(entry: TensorEntry, fetch: Fetch) -> torch.Tensor:
    return opened_tensor(entry, fetch).double()


def _distance(name: str, there: torch.Tensor, here: torch.Tensor) -> TensorDistance:
    return TensorDistance(
        name=name,
        distance=norm(there - here),
        opened=norm(there),
        here=norm(here),
        size=there.numel(),
        zeros=int(((there == 0) != (here == 0)).sum()),
    )


def _largest(tensor: torch.Tensor) -> float:
    """The largest magnitude among the finite elements; 0 where there is none."""
    return float(tensor.nan_to_num(0.0, 0.0, 0.0).abs().max()) if tensor.numel() else 0.0


def _finite(tensors: Iterable[torch.Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
