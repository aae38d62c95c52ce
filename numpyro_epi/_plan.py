"""One run of the augmented-Lagrangian loop, afresh or from a checkpoint: what it depends on, and what comes of it."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flowjax.distributions import AbstractDistribution

from . import _optimizer, objectives, starts
from ._begin import Outline, begin_flow, outline
from ._certificate import MAX_KHAT, Known, assess, assess_by_draws, cost, judged
from ._checkpoint import Keeper, Saved, describe
from ._chunks import NUM_CHUNKS, Chunks, Goal, arrived, given_up, is_stuck, run_chunks, seems_near, violations
from ._conditioned import Conditioned, conditioner
from ._fresh import measure
from ._gradients import without_misleading_gradients
from ._journal import Journal
from ._keys import key_text
from ._loop import EpochRecord, Loop, LoopState, partition
from ._method import Method
from ._outcome import STATUS, Certificate, Verdict
from ._pool import Pool
from ._problem import Problem
from ._restarts import Candidates, Fleet, rank
from ._result import Result
from ._settled import pool_of, settle
from ._snapshots import Recorder
from ._stop import StoppedBeforeFirstStep, StopRequest
from ._types import Key, Moments
from .multipliers import AbstractMultiplierRule, Natural, Yielding, YieldingState
from .objectives import AbstractObjective, Anchored

FRESH_BATCHES, LOOK_BATCHES = 80, 20
"""Batches of the verdict: with 500 draws each, a mean's 95 % interval is 0.01 standard deviations wide on either side; and of a
first look, which says whether a verdict is worth its simulations."""

AVERAGED_PART = 30
"""The guide is averaged over the last steps, about one in so many."""

STEPS_PER_BATCH = 4
"""A run ends with one batch for so many steps to read its multipliers from: a tenth of its time, since they need no
gradients, and the mean's error is theirs."""

MIN_WEIGHTED, BIASED_PART = 1000.0, 0.01
"""Effective draws, and the part of the guide's residual variance that is taken to lie along the statistics and so to bias its
own multipliers, from which on the certificate's are better: their relative variance is one over its effective draws."""

MAX_DISTANCE = 0.5
"""Variance of ``log q - log base + eta . T``, nats^2, up to which a guide shows its multipliers better than its history."""

MANY_DRAWS, FEW_PARAMETERS = 20_000, 6
"""Draws that full chains give, and parameters up to which the loop trusts so many of a start's draws as much as its own. A flow
of more parameters learns draws by heart: at a weight of one its likelihood was .02 nats above that of held-out draws with 4
parameters, .53 with 17, and guides of 14 and 17 parameters ended at .17 and .14 nats, with a tenth at .14 and .09. With 4
parameters a tenth lets the loop lose its way (.29 for .03)."""

FITTED_RATE, FITTED_WARM_UP = 1e-3, 100
"""Learning rate of a flow that is near the solution, and steps in which it rises: the first steps of Adam are as long for small
gradients as for large ones. At 2e-3 from the first step on, a guide of two modes .13 nats away ended .31 nats away, with the
modes' shares at .66 instead of .5; with these at .03 and .50."""

STILL_FALLING = 0.9
"""Ratio of the worst violation in the last quarter of a run to that in the third, and of what it falls to in the end to that in
the last quarter, below which it is on its way to its target."""

HELD_PART = 0.5
"""Of a run's steps, after which the multipliers that its start knows move for a guide that does not have the property by them."""

START_BATCHES = 8
"""Batches that measure the guide before the first step."""

MAX_PROPOSALS = 4
"""Most guides whose draws a certificate weighs: the chosen one and the best other restarts."""

MOST_OF_GAP = 0.75
"""Part of ``max_gap`` above which the error of a start's normaliser leaves a guide too little room to be certified."""

MOST_LOOKS = 3
"""Certificates on the way, without one that is conclusive, after which a run whose records lie within ``max_gap`` ends."""

MOST_ATTEMPTS = 3
"""Initial values of a flow that are tried, where runs get stuck."""

MAX_CERTIFICATE_SHARE = 0.2
"""Most model runs of a certificate that nobody asked for, as a share of the loop's own."""

MORE = 4
"""Times as many batches where a verdict's interval crosses the tolerance that its mean is within."""


KEPT_OF_START = ("fit_draws", "message", "log_normalizer", "infeasible", "ess", "times_solved", "num_simulations")
"""Numbers and words of a start that a checkpoint holds beside its arrays."""


class _Tally:
    """Model runs that are neither the start's nor the steps', by what they were for: what is done again after a stop counts once.

    Attributes:
        per_draw: Simulations of one of a guide's fresh draws.
        counts: By name.
    """

    def __init__(self, problem: Problem, counts: dict[str, int]):
        self.per_draw = 2 if problem.simulator.noise else 1
        self.counts = dict(counts)

    def measured(self, name: str, num_draws: int) -> None:
        """Count fresh draws of guides."""
        self.counts[name] = self.per_draw * num_draws

    @property
    def total(self) -> int:
        return sum(self.counts.values())


class Plan(NamedTuple):
    """A run before its first step: all that its result depends on."""

    key: Key
    problem: Problem
    method: Method
    num_draws: int
    max_steps: int
    num_restarts: int
    tolerance: float
    certify: bool | None
    max_gap: float
    num_snapshots: int

    def about(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in self._fields[3:]}
        return {**describe(self.problem, self.method.described()), "key": key_text(self.key), "numbers": numbers}

    def begin(self, saved: Saved | None, keeper: Keeper | None, *, began: float) -> starts.Start:
        """The start, from the steps of it that a checkpoint holds, if it does."""
        start = starts.default(self.problem) if self.method.start is None else self.method.start
        key = jax.random.split(self.key, 5)[0]
        if keeper is None:
            return start(key, self.problem)
        about = self.about()

        def keep(arrays: dict[str, np.ndarray], now: bool = False) -> None:
            stopped_by = stop.signal_name
            keeper.save({**about, "seconds": time.perf_counter() - began}, arrays, now=now or bool(stopped_by))
            if stopped_by:
                raise StoppedBeforeFirstStep(stopped_by, keeper.path)

        with StopRequest() as stop, Journal({} if saved is None else saved.arrays, keep) as journal:
            found = start(key, self.problem)
            if journal.arrays or stop:
                keep(journal.arrays, now=True)
        return found

    def run(
        self, begin: starts.Start, saved: Saved | None, keeper: Keeper | None, *, began: float, progress: bool
    ) -> Result:
        """All that comes after the start."""
        problem = self.problem
        if self.method.objective is None and begin.eta is not None:
            # Draws of the prior may miss a step that only the solution's draws cross.
            problem = without_misleading_gradients(problem, begin.draws)
        return self._replace(problem=problem)._run(begin, saved, keeper, began=began, progress=progress)

    def _run(
        self, begin: starts.Start, saved: Saved | None, keeper: Keeper | None, *, began: float, progress: bool
    ) -> Result:
        keys = jax.random.split(self.key, 5)
        conditioned = conditioner(self.problem)
        pool: Pool | None = None
        first: AbstractDistribution | None = None
        tally = _Tally(self.problem, {} if saved is None else saved.about["looked"])
        if saved is None:
            begin, shape, first, pool, num_measured = settle(
                jnp.stack([keys[1], self._certificate_key(keys, 0)]),
                self.problem,
                self.method.flow,
                begin,
                conditioned,
                measure_with=(START_BATCHES, self.num_draws),
                may_solve=self.certify is not False,
            )
            tally.measured("fits", num_measured * START_BATCHES * self.num_draws)
        else:
            shape = outline(self.method.flow, begin)
        tally.measured("beginning", self.num_restarts * START_BATCHES * self.num_draws)
        if pool is not None:
            tally.counts["certificate 0"] = pool.num_simulations
        fleet, run, budget = self._launch(keys, begin, shape, first, saved)
        recorder = Recorder(self.problem, jax.random.fold_in(keys[2], 5), self.num_snapshots)
        if saved is not None:
            recorder.restore(fleet, run.state, saved.arrays)
        about = self.about() if keeper is not None else {}

        def judge(states: list[LoopState], look: int, num_batches: int = FRESH_BATCHES) -> list[Verdict]:
            # Every look at the run takes draws of its own.
            tally.measured(f"look {look}", len(states) * num_batches * self.num_draws)
            key = jax.random.fold_in(jax.random.fold_in(keys[2], 1), look)
            guides = map(conditioned, fleet.flows(states))
            return [measure(self.problem, guide, key, num_batches, self.num_draws).verdict() for guide in guides]

        def keep(run: Chunks, now: bool) -> None:
            if keeper is not None:
                arrays = {"begin.draws": np.asarray(begin.draws)} | run.arrays() | recorder.arrays()
                optional = {name: getattr(begin, name) for name in ("eta", "covariance", "independent", "log_density")}
                arrays |= {f"begin.{name}": np.asarray(a) for name, a in optional.items() if a is not None}
                start = {name: getattr(begin, name) for name in KEPT_OF_START}
                if begin.proposed is not None:
                    arrays |= {f"begin.proposed.{name}": np.asarray(a) for name, a in begin.proposed._asdict().items()}
                if begin.known is not None:
                    arrays["begin.known.log_density"] = np.asarray(begin.known.log_density)
                    start["known"] = {name: getattr(begin.known, name) for name in Known._fields[1:]}
                seconds = time.perf_counter() - began
                numbers = {"chunks": len(run.found), "attempt": run.attempt, "seconds": seconds, "looked": tally.counts}
                keeper.save({**about, "begin": start, **numbers}, arrays, now=now)

        certificates: dict[int, Certificate | None] = {}
        looks: list[Certificate | None] = []

        def may_be_certified(gap: float) -> bool:
            # The error of the start's normaliser stays whatever the guide does: where it is most of what is allowed, look anyway.
            error = 1.96 * math.sqrt(begin.known.relative_variance) if begin.known is not None else 0.0
            return gap + error <= self.max_gap or error > MOST_OF_GAP * self.max_gap

        def seems_reached(states: list[LoopState], chunk: int) -> bool:
            verdicts = judge(states, 2 * NUM_CHUNKS + chunk, LOOK_BATCHES)
            if not all(np.all(np.abs(v.violation(self.problem.target)) <= self.tolerance) for v in verdicts):
                return False
            if not self._is_single(begin) or begin.known is None:
                return True
            # The same certificate as the verdict's would be, but for their draws.
            gap = begin.known.log_normalizer - verdicts[0].base_entropy
            gap += float(np.asarray(begin.eta, float) @ (verdicts[0].mean - self.problem.target))
            return may_be_certified(gap)

        def is_reached(states: list[LoopState], verdicts: list[Verdict], chunk: int) -> bool:
            if self._is_single(begin) and self.certify is not False:
                (guide,) = map(conditioned, fleet.flows(states))
                certificates.clear()
                fresh = pool if chunk == 0 else None
                certificates[chunk] = found = self._certify(keys, begin, guide, verdicts[0], chunk, fresh)
                looks.append(found)
                tally.counts[f"certificate {chunk}"] = own = _own_simulations(found, begin)
                is_near = found is not None and found.conclusive and found.upper <= self.max_gap
                if found is None or not found.conclusive or (not own and may_be_certified(math.inf)):
                    # More steps do not make the certificate's weights any better.
                    return is_near or len(looks) >= MOST_LOOKS
                return is_near
            return True

        def may_be_reached(run: Chunks) -> bool:
            if self._is_single(begin):
                return seems_near(run, self.problem, self.tolerance, self.max_gap, begin.log_normalizer)
            return arrived(run, self.problem, self.tolerance)

        def anew(run: Chunks) -> Chunks | None:
            if not self._is_single(begin) or run.attempt >= MOST_ATTEMPTS - 1 or not begin.fit_draws:
                return None
            if not is_stuck(run, self.problem, self.max_gap, begin.log_normalizer):
                return None
            nonlocal pool
            pool = None
            given_up = int(fleet.split(run.state)[0].step) * self.num_draws
            tally.counts = {"given up": tally.total + given_up}
            tally.measured("beginning", START_BATCHES * self.num_draws)
            return Chunks(self._again(keys, begin, shape, fleet, run.attempt + 1), [], run.attempt + 1)

        with StopRequest() as stop:
            run, verdicts = run_chunks(
                fleet,
                run,
                budget,
                judge,
                Goal(may_be_reached, seems_reached, is_reached, anew),
                keep,
                stop,
                recorder,
                tolerance=self.tolerance,
                progress=progress,
            )
            states = fleet.split(run.state)
            verdicts = stop.unless_stopped(
                lambda: _looked_at_again(
                    self.problem, verdicts, self.tolerance, lambda: judge(states, NUM_CHUNKS + 9, MORE * FRESH_BATCHES)
                ),
                verdicts,
            )
            guides = list(map(conditioned, fleet.flows(states)))
            last = certificates.get(len(run.found))
            return self._finish(keys, begin, shape, states, guides, run, verdicts, last, stop, began, recorder, tally)

    def _is_single(self, begin: starts.Start) -> bool:
        """Whether one guide moves towards a known solution, so that it can be certified on its way."""
        return begin.eta is not None and self.num_restarts == 1

    def _certificate_key(self, keys: Key, chunk: int) -> Key:
        """Of a look after so many chunks."""
        return jax.random.fold_in(jax.random.fold_in(keys[2], 3), chunk)

    def _certify(
        self,
        keys: Key,
        begin: starts.Start,
        guide: AbstractDistribution,
        verdict: Verdict,
        chunk: int,
        pool: Pool | None = None,
    ) -> Certificate | None:
        """The certificate of a guide near a known solution; ``None`` where it is too expensive to be made unasked."""
        eta = np.asarray(begin.eta, float)
        if pool is not None:
            return judged(pool, eta)
        if begin.known is not None and self.certify is not True:
            # Under noise the start simulated its draws until fresh ones agreed; a certificate's few of each are biased.
            is_cheap = cost(self.problem, 3) <= begin.known.num_simulations and not self.problem.simulator.noise
            if not is_cheap:
                return assess_by_draws(self.problem, guide, verdict, begin.draws, eta, begin.known)
        return judged(pool_of(self._certificate_key(keys, chunk), self.problem, guide, begin), eta)

    def _is_pathwise(self) -> bool:
        """Whether the fit took gradients through the simulator."""
        if self.method.objective is None:
            return self.problem.differentiable
        return isinstance(self.method.objective, objectives.Pathwise)

    def _settings(self, begin: starts.Start) -> "_Settings":
        problem, method = self.problem, self.method
        rule = _rule_for(method.rule, begin, self.max_steps, self.tolerance)
        objective = objectives.default(problem) if method.objective is None else method.objective
        annealed = rule.anneals and begin.eta is None
        return _Settings(
            problem,
            objective if begin.eta is None else Anchored(objective, begin.draws, anchor_weight(begin, problem.dim)),
            rule,
            method.optimizer or _optimizer_for(begin, self.max_steps),
            self.num_draws,
            anneal_steps=int(0.6 * self.max_steps) if annealed else 0,
            memory=max(1, self.max_steps // AVERAGED_PART),
        )

    def _again(self, keys: Key, begin: starts.Start, shape: Outline, fleet: Fleet, attempt: int) -> LoopState:
        """The first state of another attempt: other initial values of the flow, with the fixed arrays of the first one."""
        one = jax.vmap(lambda key: jax.random.fold_in(key, 2000 + attempt))(keys)
        flow = begin_flow(one[1], self.method.flow, begin, shape, static=fleet.loop.static)
        _, state, _ = self._settings(begin).begin(flow, begin, one, is_known=False)
        return state

    def _launch(
        self, keys: Key, begin: starts.Start, shape: Outline, first: AbstractDistribution | None, saved: Saved | None
    ) -> tuple[Fleet, Chunks, int]:
        """The compiled loop, where it stands, and the steps that it may take; the first restart's flow where it is begun."""
        method, is_known = self.method, saved is not None
        settings = self._settings(begin)
        begun = []
        for number, one in enumerate(_restart_keys(keys, self.num_restarts)):
            if number or first is None:
                flow = begin_flow(one[1], method.flow, begin, shape, is_fitted=is_known)
            else:
                flow = first
            begun.append(settings.begin(flow, begin, one, is_known=is_known))
        fleet = Fleet.of([loop for loop, _, _ in begun])
        run = Chunks(fleet.stack([state for _, state, _ in begun]), [])
        if saved is not None:
            run = Chunks.read(saved.arrays, run.state, saved.about["chunks"], self.num_restarts, saved.about["attempt"])
        usable = all(finite_share > 0 for *_, finite_share in begun) and begin.infeasible is None
        return fleet, run, self.max_steps if usable else 0

    def _finish(
        self,
        keys: Key,
        begin: starts.Start,
        shape: Outline,
        states: list[LoopState],
        guides: list[AbstractDistribution],
        run: Chunks,
        verdicts: list[Verdict],
        certified_already: Certificate | None,
        stop: StopRequest,
        began: float,
        recorder: Recorder,
        tally: _Tally,
    ) -> Result:
        """Multipliers, certificate, and the choice among restarts; a run that is asked to stop gets no certificate."""
        problem, num_draws, tolerance = self.problem, self.num_draws, self.tolerance
        records = run.records(self.num_restarts)
        is_solved = begin.eta is not None
        infeasible = begin.infeasible is not None
        statuses = [
            STATUS.infeasible if infeasible else _status(problem, v, r, tolerance, is_solved)
            for v, r in zip(verdicts, records, strict=True)
        ]
        late = [_late_multipliers(state, record) for state, record in zip(states, records, strict=True)]
        eta = np.asarray(begin.eta if begin.eta is not None else np.median(late, axis=0), float)
        source = "start" if is_solved else "loop"
        found = Candidates(guides, verdicts, statuses)
        restarts = None
        if self.num_restarts > 1:
            found, restarts = rank(
                jax.random.fold_in(keys[2], 4), problem, found, eta, measure_with=(FRESH_BATCHES, num_draws)
            )
            tally.measured("mixture", FRESH_BATCHES * num_draws if restarts.mixed else 0)
        fitted, verdict, status = found.flows[0], found.verdicts[0], found.statuses[0]
        if restarts is not None and restarts.mixed:
            status = _status(problem, verdict, records[restarts.chosen], tolerance, is_solved)
        steps = int(states[0].step)
        if begin.eta is None and status is STATUS.satisfied:
            num_batches = max(FRESH_BATCHES, steps // STEPS_PER_BATCH)
            tally.measured("multipliers", 0 if stop else num_batches * num_draws)
            shown = stop.unless_stopped(
                lambda: measure(problem, fitted, jax.random.fold_in(keys[2], 2), num_batches, num_draws), None
            )
            shown_eta, residual = (eta, np.inf) if shown is None else shown.multipliers(problem.target)
            if residual < MAX_DISTANCE:
                eta, source = shown_eta, "guide"
        else:
            residual = np.inf
        proposals = 1 + min(len(found.flows), MAX_PROPOSALS) + (begin.eta is not None)
        simulations = self.num_restarts * steps * num_draws

        def certified() -> Certificate | None:
            if self.certify is False or infeasible or not np.all(np.isfinite(eta)):
                return None
            if self._is_single(begin) and np.isfinite(verdict.base_entropy):
                return certified_already or self._certify(keys, begin, fitted, verdict, NUM_CHUNKS + 1)
            if _certifies(self.certify, problem, proposals, simulations=simulations) or begin.independent is not None:
                return assess(
                    jax.random.fold_in(keys[2], 3),
                    problem,
                    fitted,
                    eta,
                    solution=begin.draws if begin.eta is not None else None,
                    independent=begin.independent,
                    others=found.flows[1:MAX_PROPOSALS],
                )
            if begin.known is not None and np.isfinite(verdict.base_entropy):
                return assess_by_draws(problem, fitted, verdict, begin.draws, eta, begin.known)
            return None

        certificate = stop.unless_stopped(certified, None)
        if certificate is not certified_already:
            tally.counts["certificate"] = _own_simulations(certificate, begin)
        if begin.eta is None and certificate is not None and certificate.tilted:
            # Weights correct for what the guide misses of the solution, which its regression on the statistics does not; but
            # they are fewer draws.
            enough = max(MIN_WEIGHTED, 1.0 / (BIASED_PART * max(residual, 1e-9)))
            if certificate.ess > enough and certificate.khat < MAX_KHAT:
                eta, source = certificate.eta, "certificate"
            if status is STATUS.infeasible and certificate.ess > MIN_WEIGHTED:
                # Some weighting of draws has the property.
                status = STATUS.unsatisfied
        cut_by = stop.signal_name
        status = STATUS.interrupted if cut_by else status
        return Result(
            problem=problem,
            flow=fitted,
            status=status,
            verdict=verdict,
            eta=np.asarray(eta, float),
            records=_history(records[restarts.chosen if restarts else 0], problem),
            settings={
                "num_draws": num_draws,
                "max_steps": self.max_steps,
                "steps": steps,
                "num_simulations": begin.num_simulations + simulations + tally.total,
                "tolerance": tolerance,
                "num_restarts": self.num_restarts,
                "start_message": f"{_misled(problem)}{begin.message}",
                "start_solved": is_solved,
                "infeasible": begin.infeasible,
                "max_gap": self.max_gap,
                "multiplier_source": source,
                "flow": self.method.flow_name(),
                "rule": repr(self.method.rule),
                "pathwise": self._is_pathwise(),
                "num_components": shape.components,
                "num_mixed": restarts.num_mixed if restarts else 1,
                "cut_by": cut_by,
                "nonfinite": problem.nonfinite,
                "finite_share": float(jnp.exp(fitted.log_share)) if isinstance(fitted, Conditioned) else None,
            },
            seconds=time.perf_counter() - began,
            seed=key_text(self.key),
            certificate=certificate,
            restarts=restarts,
            snapshots=recorder.of(restarts.chosen if restarts else 0),
        )


def _own_simulations(certificate: Certificate | None, begin: starts.Start) -> int:
    """Model runs that a certificate took; one by the start's own draws says what those took."""
    of_start = 0 if begin.known is None else begin.known.num_simulations
    if certificate is None or certificate.num_simulations == of_start:
        return 0
    return certificate.num_simulations


class _Settings(NamedTuple):
    """What all restarts of a run have in common."""

    problem: Problem
    objective: AbstractObjective
    rule: AbstractMultiplierRule
    optimizer: optax.GradientTransformation
    num_draws: int
    anneal_steps: int
    memory: int

    def begin(
        self, flow: AbstractDistribution, begin: starts.Start, keys: Key, *, is_known: bool
    ) -> tuple[Loop, LoopState, float]:
        """The loop and first state of one restart, and the share of its first draws that are finite.

        Where the state ``is_known`` nothing is measured, and only the state's structure means something.
        """
        parameters, static = partition(flow)
        size = len(self.problem.constraints)
        mean, covariance, finite_share = np.zeros(size), np.eye(size), 1.0
        if not is_known:
            first = measure(self.problem, flow, keys[2], START_BATCHES, self.num_draws)
            mean, covariance, finite_share = first.mean, first.covariance, first.finite_share
        if begin.covariance is not None:
            covariance = np.asarray(begin.covariance)
        rule = begin_rule(self.problem, self.rule, keys[3], covariance, begin.eta)
        origin = parameters, parameters, self.optimizer.init(parameters), rule
        state = LoopState(
            *origin,
            start_moments=jnp.asarray(mean, float),
            remaining=jnp.asarray(1.0 if self.anneal_steps else 0.0, float),
            key=keys[4],
            step=jnp.zeros((), int),
            step_scale=jnp.ones((), float),
            loss=jnp.full((), jnp.inf, float),
            finite_share=jnp.asarray(finite_share, float),
            setbacks=jnp.zeros((), int),
            held=jnp.zeros((), int),
            origin=origin,
        )
        loop = Loop(
            self.problem,
            static,
            self.objective,
            self.rule,
            self.optimizer,
            self.num_draws,
            self.anneal_steps,
            self.memory,
        )
        return loop, state, finite_share


def _rule_for(
    rule: AbstractMultiplierRule, begin: starts.Start, max_steps: int, tolerance: float
) -> AbstractMultiplierRule:
    """The rule of a run: multipliers that the start knows stay for a part of the steps, instead of being moved by `Natural`."""
    if begin.eta is None or not isinstance(rule, Natural):
        return rule
    return Yielding(
        held_epochs=int(HELD_PART * max_steps / rule.steps_per_epoch),
        slack=0.5 * tolerance,
        penalty=rule.penalty,
        rate=min(rule.rate, Yielding.rate),
        steps_per_epoch=rule.steps_per_epoch,
        shrinkage=rule.shrinkage,
    )


def _optimizer_for(begin: starts.Start, max_steps: int) -> optax.GradientTransformation:
    """The default optimiser, gentle to a flow that was fitted to draws of the solution."""
    if begin.eta is None or not begin.fit_draws:
        return _optimizer.default(max_steps)
    return _optimizer.default(max_steps, FITTED_RATE, min(FITTED_WARM_UP, max_steps // 2))


def anchor_weight(begin: starts.Start, dim: int) -> float:
    """How much the forward KL of a start's draws may weigh: few draws have shapes of their own, which a flow would learn.

    A flow of ``p`` free numbers that lies between the draws' own optimum and the solution, at weight ``w``, is off by about
    ``(w / (1 + w))^2 p / 2N`` nats.
    """
    return min(1.0, begin.num_effective / MANY_DRAWS) * min(1.0, FEW_PARAMETERS / dim) ** 2


def _looked_at_again(
    problem: Problem, verdicts: list[Verdict], tolerance: float, again: Callable[[], list[Verdict]]
) -> list[Verdict]:
    """More fresh draws where those there were leave open whether a mean is within the tolerance."""

    def is_open(verdict: Verdict) -> bool:
        within = np.abs(verdict.mean - problem.target) <= tolerance * verdict.scale
        return bool(np.all(within) and not np.all(verdict.satisfies(problem.target, tolerance)))

    return again() if any(map(is_open, verdicts)) else verdicts


def _restart_keys(keys: Key, num_restarts: int) -> list[Key]:
    """Keys of each restart; the first one's are those of a run without restarts."""
    more = [jax.vmap(lambda key, i=i: jax.random.fold_in(key, 1000 + i))(keys) for i in range(1, num_restarts)]
    return [keys, *more]


def _certifies(asked: bool | None, problem: Problem, num_proposals: int, *, simulations: int) -> bool:
    return cost(problem, num_proposals) <= MAX_CERTIFICATE_SHARE * simulations if asked is None else asked


def begin_rule(
    problem: Problem, rule: AbstractMultiplierRule, key: Key, covariance: np.ndarray, eta: Moments | None
) -> Any:
    """The rule's first state, at the start's multipliers where these are known, and in the verdict's units."""
    state = rule.init(key, jnp.asarray(covariance, float))
    if isinstance(state, YieldingState):
        scale = problem.scale(np.sqrt(np.diagonal(covariance)))
        state = state._replace(scale=jnp.asarray(scale, state.scale.dtype))
    return state if eta is None else state._replace(eta=eta.astype(state.eta.dtype))


def _status(
    problem: Problem, verdict: Verdict, records: EpochRecord | None, tolerance: float, is_solved: bool
) -> STATUS:
    """How a run ended; where its start knew draws with the property, the property is feasible whatever the flow does."""
    if not (np.isfinite(verdict.entropy) and np.all(np.isfinite(verdict.mean))):
        return STATUS.nonfinite
    if records is not None and given_up(records):
        return STATUS.diverged
    if np.all(verdict.satisfies(problem.target, tolerance)):
        return STATUS.satisfied if verdict.finite_share == 1.0 else STATUS.nonfinite_draws
    if records is not None and not is_solved and _out_of_reach(problem, verdict, records, tolerance):
        return STATUS.infeasible
    return STATUS.unsatisfied


def _out_of_reach(problem: Problem, verdict: Verdict, records: EpochRecord, tolerance: float) -> bool:
    """Whether the dual seems unbounded: eta moved far in the last quarter, against a violation that did not give way.

    The dual has no minimum exactly where no distribution has the property; then eta runs along a direction in which
    every moment that the model can produce lies on one side of the targets.
    """
    quarter = max(1, len(records.step) // 4)
    if len(records.step) < 8:
        return False
    moved = (records.eta[-1] - records.eta[-quarter]) * verdict.scale
    violation = verdict.violation(problem.target)
    worst = int(np.argmax(np.abs(violation)))
    found = violations(records, problem)[:, worst]
    late = found[-quarter:]
    if _still_falls(*(float(np.mean(np.abs(found[len(found) - n * quarter :][:quarter]))) for n in (3, 2, 1))):
        return False
    # Of a statistic that does not vary the violation is infinite, and no multiplier moves it.
    with np.errstate(invalid="ignore"):
        against = moved[worst] * violation[worst]
    return bool(abs(violation[worst]) > tolerance and against > 0.1 and np.all(np.sign(late) == np.sign(late[0])))


def _still_falls(second: float, third: float, last: float) -> bool:
    """Whether a violation falls on, by its means in three quarters of a run and the limit of a geometric series (Aitken 1926)."""
    if last >= STILL_FALLING * third:
        return False
    ratio = (third - last) / (second - third) if second > third else 1.0
    return ratio >= 1.0 or last - (third - last) * ratio / (1.0 - ratio) < STILL_FALLING * last


def _late_multipliers(state: LoopState, records: EpochRecord | None) -> np.ndarray:
    if records is None:
        return np.asarray(state.rule.eta, float)
    return np.asarray(records.eta, float)[-max(1, len(records.eta) // 10) :].mean(axis=0)


def _misled(problem: Problem) -> str:
    """What was found of the statistics' gradients."""
    if not problem.misled:
        return ""
    return (
        f"The gradients of {', '.join(problem.misled)} are not those of its mean, so the score function was used "
        "(declare it with statistic(differentiable=False)). "
    )


def _history(records: EpochRecord | None, problem: Problem) -> dict[str, np.ndarray]:
    if records is None:
        size = len(problem.constraints)
        vectors = ("moment", "scale", "eta")
        records = EpochRecord(**{n: jnp.zeros((0, size) if n in vectors else 0) for n in EpochRecord._fields})
    columns = {name: np.asarray(column) for name, column in records._asdict().items()}
    columns["multiplier"] = columns.pop("eta")
    columns["violation"] = violations(records, problem)
    return columns
