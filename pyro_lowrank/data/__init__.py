"""Recordings: read from files and from the objects of other libraries, spikes binned, parts held out."""

from pyro_lowrank.data.counts import rebin
from pyro_lowrank.data.folds import time_folds, trial_folds
from pyro_lowrank.data.objects import from_mne, from_pynapple, from_xarray
from pyro_lowrank.data.reading import read_recording
from pyro_lowrank.data.recording import Recording
from pyro_lowrank.data.spikes import bin_spikes
from pyro_lowrank.data.splits import cut_windows, split_features, split_time, split_trials
from pyro_lowrank.data.suite2p import read_suite2p

__all__ = [
    "Recording",
    "bin_spikes",
    "cut_windows",
    "from_mne",
    "from_pynapple",
    "from_xarray",
    "read_recording",
    "read_suite2p",
    "rebin",
    "split_features",
    "split_time",
    "split_trials",
    "time_folds",
    "trial_folds",
]
