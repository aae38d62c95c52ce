"""Exported data made by hand, without a fit: a matrix ``A``, two statistics, a trajectory, weights, and snapshots."""

import numpy as np
import xarray as xr

from numpyro_epi._datatree import to_datatree

CHAINS, DRAWS, SNAPSHOTS, STEPS = 2, 150, 4, 60


def made_run(rows: int = 2, columns: int = 2, *, restarts: int = 0) -> xr.DataTree:
    """Normal draws inside bounds of 5, and all groups that pictures read."""
    rng = np.random.default_rng(0)
    draws = {name: rng.normal(scale=scale, size=(CHAINS, DRAWS, rows, columns)) for name, scale in SPREADS.items()}
    lp = -np.square(draws["posterior"]).sum(axis=(2, 3))
    groups = {name: xr.Dataset({"A": _parameter(values)}) for name, values in draws.items()}
    groups["posterior_predictive"] = _predictive(draws["posterior"])
    groups["sample_stats"] = _sample_stats(lp, rng)
    groups["constant_data"] = _constant_data(rows, columns)
    groups["optimization"] = _history()
    groups["optimization_draws"] = _snapshots(draws["posterior"].reshape(-1, rows, columns), lp.ravel())
    attrs = {"problem": "made", "status": "satisfied", "entropy": 1.0, "gap": 0.1, "gap_standard_error": 0.02}
    attrs |= {"upper_bound": -2.0, "certificate": "Optimal within 0.14 nats.", "base": "prior"}
    if restarts:
        columns_of = {"corrected": -2.1 - 0.7 * np.arange(restarts), "standard_error": np.full(restarts, 0.01)}
        data = {name: ("chain", values) for name, values in columns_of.items()}
        groups["restarts"] = xr.Dataset(data | {"status": ("chain", ["satisfied"] * restarts)})
    return to_datatree(groups, attrs)


SPREADS = {"posterior": 1.0, "prior": 2.0}


def _parameter(values: np.ndarray, leading: tuple[str, str] = ("chain", "draw")) -> tuple:
    return (*leading, "A_dim_0", "A_dim_1"), values, {"kind": "parameter", "original_name": "A"}


def _predictive(matrices: np.ndarray) -> xr.Dataset:
    """A trajectory ``x`` of two numbers in time, whose first is a line with slope ``A[0,0]``."""
    time = np.broadcast_to(np.linspace(0, 3, STEPS), (CHAINS, DRAWS, STEPS))
    slopes = np.stack([matrices[..., 0, 0], -matrices[..., 0, 0]], axis=-1)
    attrs = {"kind": "deterministic"}
    data = {"time": (("chain", "draw", "time_dim_0"), time, {**attrs, "original_name": "time"})}
    values = time[..., None] * slopes[..., None, :]
    data["x"] = (("chain", "draw", "x_dim_0", "x_dim_1"), values, {**attrs, "original_name": "x"})
    for i, name in enumerate(("first", "second")):
        data[name] = (("chain", "draw"), matrices[..., 0, i], {"kind": "statistic", "unit": "Hz"})
    return xr.Dataset(data)


def _sample_stats(lp: np.ndarray, rng: np.random.Generator) -> xr.Dataset:
    weights = rng.normal(scale=0.2, size=(2, *lp.shape))
    weights -= np.log(np.exp(weights).sum(axis=(1, 2), keepdims=True))
    dims = ("chain", "draw")
    return xr.Dataset(
        {
            "lp": (dims, lp),
            "log_importance_weight": (dims, weights[0]),
            "log_weight": (dims, weights[1], {"ess": 290.0, "khat": 0.2}),
        }
    )


def _constant_data(rows: int, columns: int) -> xr.Dataset:
    names = ["first", "second", "var first", "var second"]
    data = {"target": [0.0, 0.0, 1.0, 1.0], "order": [1, 1, 2, 2], "violation": [0.0] * 4, "scale": [1.0] * 4}
    found = xr.Dataset({n: ("constraint", np.array(v)) for n, v in data.items()}, coords={"constraint": names})
    found["unit"], found["statistic"] = ("constraint", ["Hz"] * 4), ("constraint", ["first", "second"] * 2)
    for side, end in (("lower", -5.0), ("upper", 5.0)):
        attrs = {"kind": f"{side} bound", "parameter": "A"}
        found[f"A_{side}"] = (("A_dim_0", "A_dim_1"), np.full((rows, columns), end), attrs)
    return found


def _history() -> xr.Dataset:
    steps = 50 * np.arange(1, SNAPSHOTS)
    violation = np.exp(-steps / 50)[:, None] * np.ones(4)
    data = {"step": ("epoch", steps), "entropy": ("epoch", np.linspace(5, 1, len(steps)))}
    for name in ("violation", "multiplier"):
        data[name] = (("epoch", "constraint"), violation)
    return xr.Dataset(data, coords={"constraint": ["first", "second", "var first", "var second"]})


def _snapshots(matrices: np.ndarray, lp: np.ndarray) -> xr.Dataset:
    """The first draws, twice as wide at first and then ever nearer to how they end."""
    factors = np.linspace(2, 1, SNAPSHOTS)
    matrices = factors[:, None, None, None] * matrices[:100]
    dims = ("snapshot", "draw")
    data = {"A": _parameter(matrices, dims), "lp": (dims, np.tile(lp[:100], (SNAPSHOTS, 1)), {"kind": "quality"})}
    for i, name in enumerate(("first", "second")):
        data[name] = (dims, matrices[:, :, 0, i], {"kind": "statistic", "unit": "Hz", "original_name": name})
    data["step"] = ("snapshot", 50 * np.arange(SNAPSHOTS), {"kind": "step"})
    return xr.Dataset(data)
