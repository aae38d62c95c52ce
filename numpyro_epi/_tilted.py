"""The maximum-entropy distribution itself: the base tilted by a result's multipliers, as a NumPyro model and as chains.

The density is ``p_eta(z)`` proportional to ``base(z) exp(-eta · (T(z) - target))``. The guide only approximates it; NUTS
draws from it, in the coordinates that the guide's flow has made easy (Hoffman et al. 2019, arXiv:1903.03704). Between its
transitions a chain may jump to a fresh draw of the guide, which joins the modes that the guide has (Tierney 1994, Annals of
Statistics 22:1701, section 2.3.3: an independence chain; Gabrié, Rotskoff & Vanden-Eijnden 2022, PNAS 119).
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import xarray as xr
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions import Distribution
from numpyro.infer import MCMC
from numpyro.infer.hmc import HMCState, hmc
from numpyro.infer.mcmc import MCMCKernel

from ._arguments import check_count
from ._arviz import _batch, _constant_data, _draw_groups, _root_attributes
from ._conditioned import unconditioned
from ._datatree import SAMPLE_DIMS, to_arviz, to_datatree
from ._dual import DualSolution
from ._guide import AutoFlow, parameters_only
from ._keys import key_from_text
from ._noise import correction
from ._problem import Problem
from ._products import compiled, with_full_products
from ._result import Result
from ._types import Draws, Key, Moments, Scalar, Unconstrained

NUM_SIMULATIONS = 32
"""Simulations of each parameter set that stand for ``E[T | z]`` where the simulator has noise of its own."""

STARTS_PER_CHAIN = 32
"""Draws of the guide that are looked at for each chain's start, if some of their simulations are not finite."""

_CHAINS = (
    "NUTS in the guide's coordinates, with jumps to its draws: successive draws are correlated, chains are independent."
)
_DUAL_CHAINS = "Chains that solved the dual: weigh draws by log_weight; chains are many and short."
_WEIGHED = "Independent draws of the prior: weigh them by log_weight."
_STATS = {"diverging": "diverging", "accept_prob": "acceptance_rate", "num_steps": "n_steps", "energy": "energy"}
"""NumPyro's names, ArviZ's names."""
_OF_THE_GUIDE = ("entropy", "gap", "gap_standard_error", "certificate", "seconds")
"""Attributes of an exported result that would be wrong beside these draws."""


class Sampled(NamedTuple):
    """What chains of NUTS drew.

    Attributes:
        unconstrained: Parameters, all draws of the first chain first, shape [N, D].
        log_density: Of these under ``p_eta`` up to its normaliser, in unconstrained coordinates, nats, shape [N]; where
            the simulator has noise, estimated at the noise that the chain had then.
        stats: NUTS's own fields by ArviZ's names, each of shape [chains, draws].
    """

    unconstrained: Draws
    log_density: Float[np.ndarray, " N"]
    stats: dict[str, np.ndarray]


def tilted_model(result: Result, *, num_simulations: int = NUM_SIMULATIONS) -> Callable[[], None]:
    """See `Result.tilted_model`."""
    problem, eta = result.problem, _multipliers(result)
    _check_simulations(num_simulations)
    key = jax.random.fold_in(key_from_text(result.seed), 11)
    keys = jax.random.split(key, num_simulations if problem.simulator.noise else 1)

    @with_full_products
    def model() -> None:
        values = _sample_parameters(problem)
        # Simulations are the factor's own business: no handler outside may see or seed their sites.
        with handlers.block():
            moments = problem.mean_moments(keys, values)
        tilt = -eta @ (moments - problem.target)
        # No mass where the model fails; its NaN must not reach the chains' energies.
        numpyro.factor("epi", jnp.where(jnp.isfinite(tilt), tilt, -jnp.inf))

    return model


def sample_tilted(
    result: Result,
    key: Key,
    *,
    num_warmup: int = 500,
    num_samples: int = 1000,
    num_chains: int = 4,
    num_simulations: int = NUM_SIMULATIONS,
) -> Any:
    """See `Result.sample_tilted`."""
    _check_simulations(num_simulations)
    _check_counts(num_warmup, num_samples, num_chains)
    chain_key, noise_key = jax.random.split(key)
    counts = {"num_warmup": num_warmup, "num_samples": num_samples, "num_chains": num_chains}
    sampled = _run_chains(result, chain_key, num_simulations=num_simulations, **counts)
    groups = _groups(result.problem, sampled, noise_key, (num_chains, num_samples))
    attrs = {name: value for name, value in _root_attributes(result).items() if name not in _OF_THE_GUIDE}
    settings = counts | ({"num_simulations": num_simulations} if result.problem.simulator.noise else {})
    attrs |= {
        "sampler": "NUTS in the guide's coordinates, with jumps to its draws",
        "multipliers": result.eta,
        "sampler_settings": settings,
    }
    return to_arviz(to_datatree(groups, attrs))


class _ChainState(NamedTuple):
    """Where a chain is: its place as NumPyro's kernels show it, NUTS's own state, and the key of its simulations' noise."""

    z: Unconstrained
    nuts: HMCState
    noise: Key


class _JumpingNUTS(MCMCKernel):
    """NUTS at a noise that stays; after each transition fresh noise and a jump, both taken by Metropolis' rule.

    Place and noise are drawn from their joint density ``exp(-potential(noise, z))``, so the place has the density that
    is averaged over the noise (pseudo-marginal; Andrieu & Roberts 2009, Annals of Statistics 37:697; Alenlöv, Doucet &
    Lindsten 2021, JMLR 22:141, move both as we do).
    """

    sample_field = "z"

    def __init__(self, potential: Callable[[Key, Unconstrained], Scalar], proposal: Distribution, *, noisy: bool):
        self._potential, self._proposal, self._noisy = potential, proposal, noisy
        self._init, self._step = hmc(potential_fn_gen=lambda noise: partial(potential, noise), algo="NUTS")

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        def start(key: Key, z: Unconstrained, noise: Key) -> _ChainState:
            options = {"trajectory_length": None, "model_args": (noise,), "rng_key": key}
            return _ChainState(z, self._init(z, num_warmup, **options), noise)

        z, noise = init_params
        return (start if z.ndim == 1 else jax.vmap(start))(rng_key, z, noise)

    def sample(self, state, model_args, model_kwargs):
        return (self._transition if state.z.ndim == 1 else jax.vmap(self._transition))(state)

    def _transition(self, state: _ChainState) -> _ChainState:
        nuts = self._step(state.nuts, (state.noise,))
        key, refresh_key, jump_key = jax.random.split(nuts.rng_key, 3)
        state = _ChainState(nuts.z, nuts._replace(rng_key=key), state.noise)
        if self._noisy:
            state = self._metropolis(refresh_key, state, state.z, 0.0)
        proposed = self._proposal.sample(jump_key)
        log_ratio = self._proposal.log_prob(state.z) - self._proposal.log_prob(proposed)
        return self._metropolis(jump_key, state, proposed, log_ratio)

    def _metropolis(self, key: Key, state: _ChainState, z: Unconstrained, log_ratio: Scalar | float) -> _ChainState:
        """Go to this place with fresh noise, or stay; ``log_ratio`` is the proposal's density here over that there."""
        noise, accept_key = jax.random.split(jax.random.fold_in(key, 1))
        energy, slope = jax.value_and_grad(self._potential, argnums=1)(noise, z)
        nuts = state.nuts
        usable = jnp.isfinite(energy) & jnp.all(jnp.isfinite(slope))
        log_ratio = nuts.potential_energy - energy + log_ratio
        moves = usable & (jnp.log(jax.random.uniform(accept_key)) < log_ratio)
        # The total energy of a chain that moved keeps its kinetic part.
        total = nuts.energy + energy - nuts.potential_energy
        moved = nuts._replace(z=z, z_grad=slope, potential_energy=energy, energy=total)
        return jax.tree.map(partial(jnp.where, moves), _ChainState(z, moved, noise), state)


class _NoiseSeed(handlers.seed):
    """Seeds everything random but the parameters, which the handlers outside draw or place. For one run of the model."""

    # Else NumPyro's handler calls a plain `seed` in the place of this one.
    stateful = True

    def __init__(self, model: Callable[..., Any], parameters: tuple[str, ...]):
        super().__init__(model, rng_seed=0)
        self.parameters = parameters

    def process_message(self, msg: dict[str, Any]) -> None:
        if not (msg["type"] == "sample" and msg["name"] in self.parameters):
            super().process_message(msg)


def _sample_parameters(problem: Problem) -> dict[str, Array]:
    """Run the model with only its parameters visible; what else it computes is dropped when compiled."""
    simulator = problem.simulator

    def hidden(site: dict[str, Any]) -> bool:
        return site["type"] in ("sample", "deterministic") and site["name"] not in simulator.names

    visible = handlers.block(_NoiseSeed(simulator.model, simulator.names), hide_fn=hidden)
    # Masked, a site keeps its support and has the density one there: that is Lebesgue measure.
    based = visible if problem.base == "prior" else handlers.mask(visible, mask=False)
    trace = handlers.trace(based).get_trace(*simulator.args, **simulator.kwargs)
    return {name: trace[name]["value"] for name in simulator.names}


def _check_simulations(num_simulations: int) -> None:
    check_count("num_simulations", num_simulations)


def _multipliers(result: Result) -> Moments:
    if not np.all(np.isfinite(result.eta)):
        raise ValueError(f"Expected finite multipliers; got {result.eta}. The run ended {result.status_name}.")
    return jnp.asarray(result.eta, float)


def _check_counts(num_warmup: int, num_samples: int, num_chains: int) -> None:
    for name, count, least in (
        ("num_warmup", num_warmup, 0),
        ("num_samples", num_samples, 1),
        ("num_chains", num_chains, 1),
    ):
        check_count(name, count, least)


def _run_chains(
    result: Result, key: Key, *, num_simulations: int, num_warmup: int, num_samples: int, num_chains: int
) -> Sampled:
    start_key, chain_key = jax.random.split(key)
    simulator = result.problem.simulator
    # Only coordinates to move in: where simulations are not finite the tilted density is zero by itself.
    flow = unconditioned(result.flow)
    guide = AutoFlow.from_flow(
        parameters_only(simulator.model, simulator.names), flow, *simulator.args, **simulator.kwargs
    )
    transform = guide.get_transform(guide.params)
    log_tilted = _log_tilted(result, num_simulations)

    # Not NumPyro's NeuTraReparam: it counts the flow's log det once for every element of the first site's batch shape.
    def potential(noise: Key, base: Unconstrained) -> Scalar:
        unconstrained, log_det = transform.call_with_intermediates(base)
        return -(log_tilted(noise, unconstrained) + log_det)

    count = STARTS_PER_CHAIN * num_chains
    draws_key, noise_key = jax.random.split(start_key)
    candidates = guide.get_base_dist().sample(draws_key, (count,)), jax.random.split(noise_key, count)
    starts = _finite_starts(potential, *candidates, num_chains)
    mcmc = MCMC(
        _JumpingNUTS(potential, guide.get_base_dist(), noisy=bool(result.problem.simulator.noise)),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=sys.stderr.isatty(),
    )
    # One chain is not batched.
    starts = starts if num_chains > 1 else jax.tree.map(lambda leaf: leaf[0], starts)
    with_full_products(mcmc.run)(
        chain_key, init_params=starts, extra_fields=tuple(f"nuts.{name}" for name in ("potential_energy", *_STATS))
    )
    fields = jax.device_get(mcmc.get_extra_fields(group_by_chain=True))
    unconstrained, log_det = compiled(jax.vmap(transform.call_with_intermediates))(mcmc.get_samples())
    log_density = -np.ravel(fields["nuts.potential_energy"]) - np.asarray(log_det)
    return Sampled(unconstrained, log_density, {ours: fields[f"nuts.{theirs}"] for theirs, ours in _STATS.items()})


def _log_tilted(result: Result, num_simulations: int) -> Callable[[Key, Unconstrained], Scalar]:
    """``log p_eta`` up to its normaliser, from this many simulations with the noise of a key where there is noise.

    The mean over the noise of the exponential of an average's error is ``exp(eta' S eta / 2)``, for normal noise of
    covariance ``S`` of the average: that much is taken away, and what skewed noise adds, so that averaged over the noise the
    density is right (`_noise`).
    """
    problem, eta = result.problem, _multipliers(result)
    count = num_simulations if problem.simulator.noise else 1

    def log_tilted(noise: Key, unconstrained: Unconstrained) -> Scalar:
        found = jax.vmap(problem.evaluate, (0, None))(jax.random.split(noise, count), unconstrained)
        slack = (found.moments - problem.target) @ eta
        log_density = found.log_base[0] - jnp.mean(slack) - correction(slack)
        return jnp.where(jnp.all(found.finite), log_density, -jnp.inf)

    return log_tilted


def _finite_starts(
    potential: Callable[[Key, Unconstrained], Scalar], candidates: Draws, noise: Array, num_chains: int
) -> tuple[Float[Array, "chains D"], Array]:
    energy, slope = compiled(jax.vmap(jax.value_and_grad(potential, argnums=1)))(noise, candidates)
    (finite,) = np.nonzero(np.isfinite(energy) & np.isfinite(slope).all(axis=-1))
    if len(finite) < num_chains:
        raise ValueError(
            f"Expected {num_chains} draws of the guide with a finite density and gradient to start from; got "
            f"{len(finite)} of {len(candidates)}. problem.check(key) shows where the model fails."
        )
    return candidates[finite[:num_chains]], noise[finite[:num_chains]]


def _groups(problem: Problem, sampled: Sampled, noise_key: Key, shape: tuple[int, int]) -> dict[str, xr.Dataset]:
    measured = jax.device_get(_measured_batch(problem, noise_key, jnp.asarray(sampled.unconstrained)))
    measured = measured._replace(log_density=sampled.log_density - measured.draw.log_det)
    found = _draw_groups(problem, measured, shape, ("posterior", "posterior_predictive", "sample_stats"))
    stats = {name: (SAMPLE_DIMS, values, {"kind": "quality"}) for name, values in sampled.stats.items()}
    found["sample_stats"] = found["sample_stats"].assign(stats)
    return {name: group.assign_attrs(draws=_CHAINS) for name, group in found.items()}


_measured_batch = compiled(_batch)


def export_dual(solution: DualSolution, key: Key | None) -> Any:
    """See `DualSolution.to_arviz`."""
    problem, shape = solution.problem, solution.log_weight.shape
    noise_key = jax.random.fold_in(key_from_text(solution.seed), 7) if key is None else key
    flat = solution.unconstrained.reshape(-1, problem.dim)
    measured = jax.device_get(_measured_batch(problem, noise_key, flat))
    slack = (solution.moments.reshape(len(flat), -1) - problem.target) @ solution.eta
    log_base = measured.draw.log_prior if problem.base == "prior" else 0.0
    measured = measured._replace(log_density=log_base - slack - solution.log_normalizer)
    groups = _draw_groups(problem, measured, shape, ("posterior", "posterior_predictive", "sample_stats"))
    weights = (SAMPLE_DIMS, solution.log_weight, {"kind": "quality"})
    groups["sample_stats"] = groups["sample_stats"].assign(log_weight=weights)
    note = _DUAL_CHAINS if solution.method == "chains" else _WEIGHED
    groups = {name: group.assign_attrs(draws=note) for name, group in groups.items()}
    groups["constant_data"] = _constant_data(solution)
    names = ("log_normalizer", "log_normalizer_error", "local", "ess", "rhat", "khat")
    diagnostics = {name: float(getattr(solution, name)) for name in names}
    return to_arviz(to_datatree(groups, _root_attributes(solution) | diagnostics))
