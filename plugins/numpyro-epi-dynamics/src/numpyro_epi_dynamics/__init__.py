"""Linear and oscillating systems for numpyro_epi; found by entry point once installed."""

from .linear2d import angular_frequency, growth_rate
from .problems import oscillator, oscillator_simulated, oscillator_tutorial

__all__ = ["angular_frequency", "growth_rate", "oscillator", "oscillator_simulated", "oscillator_tutorial"]
