"""How near generated data are to real ones, and predictions to what came: arrays in, numbers out.

Recordings are `trials x time x features`, or `time x features` for one trial; NaN is missing and left out. Nothing that
is passed in is changed.
"""

from pyro_lowrank.metrics.comparison import Agreement, agreement
from pyro_lowrank.metrics.decoding import decode, decoding_r2
from pyro_lowrank.metrics.estimate import Estimate
from pyro_lowrank.metrics.prediction import bits_per_spike, psth_r2
from pyro_lowrank.metrics.recordings import hann_smoothed, standardised
from pyro_lowrank.metrics.spectra import coherence, power_spectrum_hellinger
from pyro_lowrank.metrics.state_space import state_space_kl
from pyro_lowrank.metrics.statistics import autocorrelation, isi_statistics, mean_rates, pairwise_correlations

__all__ = [
    "Agreement",
    "Estimate",
    "agreement",
    "autocorrelation",
    "bits_per_spike",
    "coherence",
    "decode",
    "decoding_r2",
    "hann_smoothed",
    "isi_statistics",
    "mean_rates",
    "pairwise_correlations",
    "power_spectrum_hellinger",
    "psth_r2",
    "standardised",
    "state_space_kl",
]
