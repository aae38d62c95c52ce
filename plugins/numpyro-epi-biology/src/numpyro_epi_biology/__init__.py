"""Biological models for numpyro_epi; found by entry point once installed."""

from .predator_prey import log_period, log_population, predator_prey
from .repressilator import amplitude, period, repressilator
from .sir import attack_rate, peak_day, sir

__all__ = [
    "amplitude",
    "attack_rate",
    "log_period",
    "log_population",
    "peak_day",
    "period",
    "predator_prey",
    "repressilator",
    "sir",
]
