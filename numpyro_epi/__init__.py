"""Emergent property inference for NumPyro models.

Which parameters make a model do this? Given a NumPyro model, statistics of its draws and targets for their means and
spreads, `fit` finds the maximum-entropy distribution over the parameters that produces exactly that emergent property.
"""

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from . import flows, matrices, multipliers, objectives, signals, starts, statistics
from ._certificate import certify
from ._chain_settings import ChainSettings
from ._density import Density, Mode
from ._dual import DualSolution, solve_dual
from ._fit import fit, resume
from ._fresh import bittner2021_test
from ._guide import AutoFlow
from ._nested import NestedEvidence, NestedSampling
from ._outcome import STATUS, Certificate, Restarts, Snapshots, Verdict
from ._problem import Problem, get_problem, list_problems
from ._property import Constraint, EmergentProperty, Target
from ._registry import PluginError, Provider
from ._result import Result
from .statistics import Statistic, get_statistic, list_statistics, statistic

if TYPE_CHECKING:
    from ._certificate_plot import plot_certificate
    from ._check import CheckReport
    from ._datatree import read_arviz
    from ._matrix import plot_matrix
    from ._movie import movie
    from ._pair import plot_pair
    from ._plots import plot_fit, plot_statistics
    from ._predictive import plot_predictive
    from ._report import report
    from ._slices import plot_conditional
    from ._store import load

__all__ = [
    "STATUS",
    "AutoFlow",
    "Certificate",
    "ChainSettings",
    "CheckReport",
    "Constraint",
    "Density",
    "DualSolution",
    "EmergentProperty",
    "Mode",
    "NestedEvidence",
    "NestedSampling",
    "PluginError",
    "Problem",
    "Provider",
    "Restarts",
    "Result",
    "Snapshots",
    "Statistic",
    "Target",
    "Verdict",
    "bittner2021_test",
    "certify",
    "fit",
    "flows",
    "get_problem",
    "get_statistic",
    "list_problems",
    "list_statistics",
    "load",
    "matrices",
    "movie",
    "multipliers",
    "objectives",
    "plot_certificate",
    "plot_conditional",
    "plot_fit",
    "plot_matrix",
    "plot_pair",
    "plot_predictive",
    "plot_statistics",
    "read_arviz",
    "report",
    "resume",
    "signals",
    "solve_dual",
    "starts",
    "statistic",
    "statistics",
]

__version__ = _version("numpyro-epi")

# xarray takes longer to import than the rest together: what needs it, or scipy.optimize, is looked up when it
# is first asked for.
_LATER = {
    "CheckReport": "._check",
    "load": "._store",
    "movie": "._movie",
    "plot_certificate": "._certificate_plot",
    "plot_conditional": "._slices",
    "plot_fit": "._plots",
    "plot_matrix": "._matrix",
    "plot_pair": "._pair",
    "plot_predictive": "._predictive",
    "plot_statistics": "._plots",
    "read_arviz": "._datatree",
    "report": "._report",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
