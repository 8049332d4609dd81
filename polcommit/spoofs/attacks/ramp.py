"""A forger who knows the screens: m forged steps that look like the others in every sketch, and the rest honest."""

from __future__ import annotations

from polcommit.errors import UsageError
from polcommit.spoofs.attacks.starts import choose_start
from polcommit.spoofs.base import Stage, TrajectorySpoof
from polcommit.spoofs.checkpoint import Weights
from polcommit.spoofs.forging import Forger


class OrdinaryRamp(TrajectorySpoof):
    """Honest until the last `m` steps, and those as ordinary updates, towards W_T; by default as few as suffice.

    A forged update is, for its rate, as long as honest ones have been, goes where the honest one of its step goes
    across the way to W_T, and has a share of its length along the way, `lean` as long as that is enough. So norms are
    an honest run's, and successive updates are at angles as between honest ones. Every forged step is wrong by about
    its own length: only re-execution shows it, and what detects it is how many there are (`forged`). Where updates are
    too short for the number of steps, a jump remains for the last one (`left for the last step`, of the whole way).
    """

    name = "ordinary-ramp"
    family = "adaptive"
    title = "reaches the stolen model by updates that look ordinary in every sketch"
    source = "polcommit"
    knows = frozenset({"W_T", "architecture", "data", "screens"})
    lean = 0.3          # of an update's length, along the way, when the ramp begins
    hurry = 1.5         # over the mean lean that is needed, so as not to be late
    warm_up = 5         # honest steps, at the least: how long updates are has to be known

    def __init__(self, m: int | None = None) -> None:
        super().__init__()
        if m is not None and m < 1:
            raise UsageError(f"a ramp of {m} steps", hint="at least one step is forged, the last")
        self.m = m          # forged steps; None: from when on a lean of `lean` is needed

    def forge(self, stage: Stage) -> None:
        forger = Forger(stage)
        choose_start(forger)
        rates = [forger.recipe.learning_rate(step) for step in range(1, stage.steps + 1)]
        mean, reach, forged = 0.0, 0.0, 0
        first = float((forger.target - forger.weights()).norm())
        for batch in stage.batches():
            before = forger.weights()
            result = forger.step(batch)
            update = forger.weights() - before
            length, rate = float(update.norm()), rates[batch.step - 1]
            if rate:    # how long an update is, for its rate: a running mean
                mean = length / rate if batch.step == 1 else 0.9 * mean + 0.1 * length / rate
                # where the model is led honest updates may be shorter: nobody sees how long they would be
                reach = max(reach, mean) if forged else mean
            left = float((forger.target - before).norm())
            budget = reach * sum(rates[batch.step - 1 :])
            if batch.step == stage.steps:
                forged += 1
                forger.place(forger.target, 1.0)
                self.notes |= {"forged": forged, "left for the last step": left / first}
            elif forged or self._begins(batch.step, stage.steps, left, budget):
                forged += 1
                lean = self.hurry * left / budget if budget else 1.0
                forger.put(before + self._update(forger.target - before, update, reach * rate, lean))
            forger.commit(batch, result)

    def _begins(self, step: int, steps: int, left: float, budget: float) -> bool:
        """Whether the ramp begins with this step: `left` of the way, and `budget` the length of all updates to come."""
        if self.m is not None:
            return step > steps - self.m
        return step > self.warm_up and left >= self.lean * budget

    def _update(self, way: Weights, update: Weights, length: float, lean: float) -> Weights:
        """Of this length, a share `lean` of it along `way` and the rest along what `update` has across."""
        lean = min(max(lean, 0.0), 1.0)
        along = way / way.norm().clamp_min(1e-300)
        across = update - (update @ along) * along
        across = across / across.norm().clamp_min(1e-300)
        return length * (lean * along + (1 - lean**2) ** 0.5 * across)
