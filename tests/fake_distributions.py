"""Distributions made on disk for a test: a module and the metadata that an installer would leave beside it."""

from collections.abc import Mapping
from pathlib import Path

STATISTICS, PROBLEMS = "numpyro_epi.statistics", "numpyro_epi.problems"

GOOD_STATISTIC = """
from numpyro_epi.statistics import statistic

@statistic(unit="mV")
def voltage(sites, *, gain=1.0):
    return gain * sites["v"]
"""

GOOD_PROBLEM = """
import numpyro
import numpyro.distributions as dist
from numpyro_epi._problem import Problem
from numpyro_epi._property import EmergentProperty, Target

def model():
    numpyro.sample("v", dist.Normal(0, 1))

def build(*, mean=0.5):
    return Problem(model, EmergentProperty(Target(lambda sites: sites["v"], mean, name="v")), name="resting")
"""


def install(
    folder: Path,
    distribution: str,
    entries: Mapping[str, str],
    *,
    group: str = STATISTICS,
    version: str = "1.0",
    source: str = "",
) -> str:
    """Write one distribution into a folder that stands on ``sys.path``.

    Args:
        folder: Where; one call for each distribution.
        distribution: Its name; its module has the same one with underscores.
        entries: Registered name to the object in that module.
        group: Entry-point group.
        version: Its version.
        source: Text of the module.

    Returns:
        The module's name.
    """
    module = distribution.replace("-", "_")
    (folder / f"{module}.py").write_text(source)
    metadata = folder / f"{module}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    lines = [f"{name} = {module}:{target}" for name, target in entries.items()]
    (metadata / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
    return module
