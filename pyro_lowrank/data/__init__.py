"""Recordings: read from files and from the objects of other libraries, spikes binned, parts held out."""

from pyro_lowrank.data.reading import read_recording
from pyro_lowrank.data.recording import Recording
from pyro_lowrank.data.spikes import bin_spikes, rebin
from pyro_lowrank.data.splits import cut_windows, split_features, split_time, split_trials

__all__ = [
    "Recording",
    "bin_spikes",
    "cut_windows",
    "read_recording",
    "rebin",
    "split_features",
    "split_time",
    "split_trials",
]
