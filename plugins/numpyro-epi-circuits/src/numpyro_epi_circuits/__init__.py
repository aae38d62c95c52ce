"""Neural circuit models for numpyro_epi; found by entry point once installed."""

from .colliculus import anti_accuracy, pro_accuracy, sc_task_switching
from .low_rank import low_rank_rnn, mean_activity, static_variance, temporal_variance
from .mean_field import mean_field_ei, stationary_state
from .rank2 import growth_rate, initial_growth_rate, rnn_stable_amplification
from .stg import hub_frequency, stg
from .v1 import excitatory_fluctuation, v1_ssn

__all__ = [
    "anti_accuracy",
    "excitatory_fluctuation",
    "growth_rate",
    "hub_frequency",
    "initial_growth_rate",
    "low_rank_rnn",
    "mean_activity",
    "mean_field_ei",
    "pro_accuracy",
    "rnn_stable_amplification",
    "sc_task_switching",
    "static_variance",
    "stationary_state",
    "stg",
    "temporal_variance",
    "v1_ssn",
]
