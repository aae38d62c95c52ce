"""The maximum-entropy distribution itself: the base tilted by a result's multipliers, as a NumPyro model and as chains.

The density is ``p_eta(z)`` proportional to ``base(z) exp(-eta · (T(z) - target))``. The guide only approximates it; NUTS
draws from it, in the coordinates that the guide's flow has made easy (Hoffman et al. 2019, arXiv:1903.03704). Between its
transitions a chain may jump to a fresh draw of the guide, which joins the modes that the guide has (Tierney 1994, Annals of
Statistics 22:1701, section 2.3.3: an independence chain; Gabrié, Rotskoff & Vanden-Eijnden 2022, PNAS 119).
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import xarray as xr
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions import Distribution
from numpyro.infer import MCMC, NUTS
from numpyro.infer.hmc import HMCState

from ._arviz import SAMPLE_DIMS, _batch, _constant_data, _draw_groups, _root_attributes, to_arviz, to_datatree
from ._dual import DualSolution
from ._keys import key_from_text
from ._problem import Problem
from ._result import Result
from ._types import Draws, Key, Moments, Scalar, Sites, Unconstrained

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
        log_density: Of these under ``p_eta`` up to its normaliser, in unconstrained coordinates, nats, shape [N].
        stats: NUTS's own fields by ArviZ's names, each of shape [chains, draws].
    """

    unconstrained: Draws
    log_density: Float[np.ndarray, " N"]
    stats: dict[str, np.ndarray]


def tilted_model(result: Result, *, num_simulations: int = NUM_SIMULATIONS) -> Callable[[], None]:
    """See `Result.tilted_model`."""
    problem, keys = result.problem, _noise_keys(result, num_simulations)
    eta = _multipliers(result)

    def model() -> None:
        values = _sample_parameters(problem)
        # Simulations are the factor's own business: no handler outside may see or seed their sites.
        with handlers.block():
            moments = _mean_moments(problem, keys, values)
        numpyro.factor("epi", -eta @ (moments - problem.target))

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
    _check_counts(num_warmup, num_samples, num_chains)
    chain_key, noise_key = jax.random.split(key)
    counts = {"num_warmup": num_warmup, "num_samples": num_samples, "num_chains": num_chains}
    sampled = _run_chains(result, chain_key, _noise_keys(result, num_simulations), **counts)
    groups = _groups(result.problem, sampled, noise_key, (num_chains, num_samples))
    attrs = {name: value for name, value in _root_attributes(result).items() if name not in _OF_THE_GUIDE}
    settings = counts | ({"num_simulations": num_simulations} if result.problem.simulator.noise else {})
    attrs |= {
        "sampler": "NUTS in the guide's coordinates, with jumps to its draws",
        "multipliers": result.eta,
        "sampler_settings": settings,
    }
    return to_arviz(to_datatree(groups, attrs))


class _JumpingNUTS(NUTS):
    """NUTS, and after each transition a proposal from a fixed distribution, taken by Metropolis' rule."""

    def __init__(self, potential: Callable[[Unconstrained], Scalar], proposal: Distribution):
        super().__init__(potential_fn=potential)
        self._potential, self._proposal = potential, proposal

    def sample(self, state, model_args, model_kwargs):
        state = super().sample(state, model_args, model_kwargs)
        return (self._jump if state.potential_energy.ndim == 0 else jax.vmap(self._jump))(state)

    def _jump(self, state: HMCState) -> HMCState:
        key, propose_key, accept_key = jax.random.split(state.rng_key, 3)
        proposed = self._proposal.sample(propose_key)
        energy, slope = jax.value_and_grad(self._potential)(proposed)
        log_ratio = self._log_weight(proposed, energy) - self._log_weight(state.z, state.potential_energy)
        usable = jnp.isfinite(energy) & jnp.all(jnp.isfinite(slope))
        jumps = usable & (jnp.log(jax.random.uniform(accept_key)) < log_ratio)
        z, z_grad, potential, kept = (
            jnp.where(jumps, new, old)
            for new, old in (
                (proposed, state.z),
                (slope, state.z_grad),
                (energy, state.potential_energy),
                # The total energy of a chain that jumped keeps its kinetic part.
                (state.energy + energy - state.potential_energy, state.energy),
            )
        )
        return state._replace(z=z, z_grad=z_grad, potential_energy=potential, energy=kept, rng_key=key)

    def _log_weight(self, z: Unconstrained, energy: Scalar) -> Scalar:
        return -energy - self._proposal.log_prob(z)


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


def _mean_moments(problem: Problem, keys: Array, values: Sites) -> Moments:
    def moments(key: Key) -> Moments:
        return problem.property.moments(problem.property.values(problem.simulator.simulate(key, values).sites))

    return jnp.mean(jax.vmap(moments)(keys), axis=0)


def _noise_keys(result: Result, num_simulations: int) -> Array:
    if num_simulations < 1:
        raise ValueError(f"Expected num_simulations of at least 1; got {num_simulations}.")
    key = jax.random.fold_in(key_from_text(result.seed), 11)
    return jax.random.split(key, num_simulations if result.problem.simulator.noise else 1)


def _multipliers(result: Result) -> Moments:
    if not np.all(np.isfinite(result.eta)):
        raise ValueError(f"Expected finite multipliers; got {result.eta}. The run ended {result.status_name}.")
    return jnp.asarray(result.eta, float)


def _check_counts(num_warmup: int, num_samples: int, num_chains: int) -> None:
    if num_warmup < 0 or num_samples < 1 or num_chains < 1:
        raise ValueError(
            "Expected num_warmup of at least 0 and at least one sample and chain; got "
            f"{num_warmup=}, {num_samples=}, {num_chains=}."
        )


def _run_chains(
    result: Result, key: Key, noise_keys: Array, *, num_warmup: int, num_samples: int, num_chains: int
) -> Sampled:
    start_key, chain_key = jax.random.split(key)
    guide = result.guide
    transform = guide.get_transform(guide.params)
    log_tilted = _log_tilted(result, noise_keys)

    # Not NumPyro's NeuTraReparam: it counts the flow's log det once for every element of the first site's batch shape.
    def potential(base: Unconstrained) -> Scalar:
        unconstrained, log_det = transform.call_with_intermediates(base)
        return -(log_tilted(unconstrained) + log_det)

    candidates = guide.get_base_dist().sample(start_key, (STARTS_PER_CHAIN * num_chains,))
    starts = _finite_starts(potential, candidates, num_chains)
    mcmc = MCMC(
        _JumpingNUTS(potential, guide.get_base_dist()),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=sys.stderr.isatty(),
    )
    # One chain is not batched.
    mcmc.run(chain_key, init_params=starts if num_chains > 1 else starts[0], extra_fields=("potential_energy", *_STATS))
    fields = jax.device_get(mcmc.get_extra_fields(group_by_chain=True))
    unconstrained, log_det = jax.jit(jax.vmap(transform.call_with_intermediates))(mcmc.get_samples())
    log_density = -np.ravel(fields["potential_energy"]) - np.asarray(log_det)
    return Sampled(unconstrained, log_density, {ours: fields[theirs] for theirs, ours in _STATS.items()})


def _log_tilted(result: Result, noise_keys: Array) -> Callable[[Unconstrained], Scalar]:
    problem, eta = result.problem, _multipliers(result)

    def log_tilted(unconstrained: Unconstrained) -> Scalar:
        found = jax.vmap(problem.evaluate, (0, None))(noise_keys, unconstrained)
        return found.log_base[0] - eta @ (jnp.mean(found.moments, axis=0) - problem.target)

    return log_tilted


def _finite_starts(
    potential: Callable[[Unconstrained], Scalar], candidates: Draws, num_chains: int
) -> Float[Array, "chains D"]:
    energy, slope = jax.jit(jax.vmap(jax.value_and_grad(potential)))(candidates)
    (finite,) = np.nonzero(np.isfinite(energy) & np.isfinite(slope).all(axis=-1))
    if len(finite) < num_chains:
        raise ValueError(
            f"Expected {num_chains} draws of the guide with a finite density and gradient to start from; got "
            f"{len(finite)} of {len(candidates)}. problem.check(key) shows where the model fails."
        )
    return candidates[finite[:num_chains]]


def _groups(problem: Problem, sampled: Sampled, noise_key: Key, shape: tuple[int, int]) -> dict[str, xr.Dataset]:
    measured = jax.device_get(eqx.filter_jit(_batch)(problem, noise_key, jnp.asarray(sampled.unconstrained)))
    measured = measured._replace(log_density=sampled.log_density - measured.draw.log_det)
    found = _draw_groups(problem, measured, shape, ("posterior", "posterior_predictive", "sample_stats"))
    stats = {name: (SAMPLE_DIMS, values, {"kind": "quality"}) for name, values in sampled.stats.items()}
    found["sample_stats"] = found["sample_stats"].assign(stats)
    return {name: group.assign_attrs(draws=_CHAINS) for name, group in found.items()}


def export_dual(solution: DualSolution, key: Key | None) -> Any:
    """See `DualSolution.to_arviz`."""
    problem, shape = solution.problem, solution.log_weight.shape
    noise_key = jax.random.fold_in(key_from_text(solution.seed), 7) if key is None else key
    flat = solution.unconstrained.reshape(-1, problem.dim)
    measured = jax.device_get(eqx.filter_jit(_batch)(problem, noise_key, flat))
    slack = (solution.moments.reshape(len(flat), -1) - problem.target) @ solution.eta
    log_base = measured.draw.log_prior if problem.base == "prior" else 0.0
    measured = measured._replace(log_density=log_base - slack - solution.log_normalizer)
    groups = _draw_groups(problem, measured, shape, ("posterior", "posterior_predictive", "sample_stats"))
    weights = (SAMPLE_DIMS, solution.log_weight, {"kind": "quality"})
    groups["sample_stats"] = groups["sample_stats"].assign(log_weight=weights)
    note = _DUAL_CHAINS if solution.method == "chains" else _WEIGHED
    groups = {name: group.assign_attrs(draws=note) for name, group in groups.items()}
    groups["constant_data"] = _constant_data(solution)
    diagnostics = {name: float(getattr(solution, name)) for name in ("log_normalizer", "ess", "rhat", "khat")}
    return to_arviz(to_datatree(groups, _root_attributes(solution) | diagnostics))
