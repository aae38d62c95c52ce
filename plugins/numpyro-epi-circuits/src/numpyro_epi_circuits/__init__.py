"""Neural circuit models for numpyro_epi; found by entry point once installed."""

from .colliculus import anti_accuracy, pro_accuracy, sc_task_switching
from .rank2 import growth_rate, initial_growth_rate, rnn_stable_amplification
from .stg import hub_frequency, stg
from .v1 import excitatory_fluctuation, v1_ssn

__all__ = [
    "anti_accuracy",
    "excitatory_fluctuation",
    "growth_rate",
    "hub_frequency",
    "initial_growth_rate",
    "pro_accuracy",
    "rnn_stable_amplification",
    "sc_task_switching",
    "stg",
    "v1_ssn",
]
