"""What keeps the modes: each part of the default start taken away in turn, and what else could take its place.

    python benchmarks/modes.py [--keys K ...] [--out FILE] [--append]

The share is that of the oscillator's mode ``a12 > 0``, one half when exact, and of the four corners' mode in the first
quadrant, 0.330 by quadrature. KL(q || p*) counts lost modes: log 2 for one of two equal ones.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import jax
import numpy as np

import numpyro_epi as epi
from numpyro_epi import _begin

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from _table import PROVENANCE, add_key_argument, add_table_arguments, opened, provenance, write_row
from chosen_problems import CHOSEN
from problems import EXACT, exact_kl

ALL = EXACT | CHOSEN
PROBLEMS = ("oscillator_paper", "four_corners")
HEADER = ("problem", "method", "KL by key (nats)", "mode share by key", "seconds", "keys", *PROVENANCE)


class Changed(epi.starts.AbstractStart):
    """The default start with fields of what it returns replaced."""

    fit_draws: bool = True
    anchored: bool = True

    def __call__(self, key, problem):
        begin = epi.starts.default(problem)(key, problem)
        return begin._replace(fit_draws=self.fit_draws, eta=begin.eta if self.anchored else None)


METHODS = {
    "defaults": {},
    "one normal as base": {"components": 1},
    "not anchored to the chains' draws": {"start": Changed(anchored=False)},
    "chains' mean and covariance only, anchored": {"start": Changed(fit_draws=False)},
    "from the prior": {"start": epi.starts.Prior()},
    "from the prior, 2,000 draws a step": {"start": epi.starts.Prior(), "num_draws": 2000},
    "from the prior, 4 restarts": {"start": epi.starts.Prior(), "num_restarts": 4},
    "from pilot draws": {"start": epi.starts.Pilot()},
}


def main() -> None:
    """Fit by every method and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_key_argument(parser, 3)
    add_table_arguments(parser)
    arguments = parser.parse_args()
    with opened(arguments, HEADER) as table:
        for name in PROBLEMS:
            for method in METHODS:
                keys = ", ".join(map(str, arguments.keys))
                write_row(table, (*_row(name, method, arguments.keys), keys, *provenance()))
                jax.clear_caches()


def _row(name: str, method: str, keys: list[int]) -> tuple[str, ...]:
    exact = ALL[name]()
    kls, shares, seconds = [], [], []
    for key in keys:
        options = dict(METHODS[method])
        with _components(options.pop("components", None)):
            try:
                result = epi.fit(jax.random.key(key), exact.problem, progress=False, certify=False, **options)
            except ValueError as error:  # Too few pilot draws.
                return name, method, str(error).split(";")[0], "-", "-"
        kls.append(exact_kl(exact, base_entropy=result.verdict.base_entropy, moments=result.verdict.mean))
        shares.append(_share(name, result))
        seconds.append(result.seconds)
    return (
        name,
        method,
        ", ".join(f"{kl:.3f}" for kl in kls),
        ", ".join(f"{share:.2f}" for share in shares),
        f"{np.median(seconds):.0f}",
    )


@contextmanager
def _components(count: int | None) -> Iterator[None]:
    allowed = tuple(n for n in _begin.COMPONENTS if count is None or n <= count)
    with mock.patch.object(_begin, "COMPONENTS", allowed):
        yield


def _share(name: str, result: epi.Result) -> float:
    draws = result.sample(jax.random.key(1), (20_000,))
    if name == "four_corners":
        return float(np.mean(np.all(np.asarray(draws["z"]) > 0, axis=-1)))
    return float(np.mean(np.asarray(draws["A"])[:, 0, 1] > 0))


if __name__ == "__main__":
    main()
