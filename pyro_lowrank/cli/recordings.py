"""The recording that a command is told of, with its inputs and conditions."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyro_lowrank.data import Recording, read_recording


def add_recording(group: Any) -> None:
    """Add the options that say how a recording is read."""
    group.add_argument(
        "--key", help="which array of a .npz, .mat or .h5 file, variable of a .nc or time series of a .nwb file"
    )
    group.add_argument(
        "--bin",
        type=float,
        metavar="SECONDS",
        help="bins in which spike times (the units of a .nwb file, a folder of Phy, a cell array of a .mat file, "
        "`spike_times` of a .npz file) are counted, needed for these; counts in shorter bins are summed",
    )
    group.add_argument("--time-axis", type=int, metavar="AXIS", help="axis of time; guessed, and told, if left out")
    group.add_argument("--trials-axis", type=int, metavar="AXIS", help="axis of trials; guessed, and told, if left out")
    group.add_argument(
        "--condition",
        metavar="NAME",
        help="what tells the condition of each trial: a column of the trials of a .nwb file, an array of a .npz, .mat "
        "or .h5 file (`condition`, if there is one)",
    )
    group.add_argument(
        "--inputs",
        type=Path,
        metavar="FILE",
        help="a file with the inputs (stimuli, cues), at the same trials and bins",
    )
    group.add_argument("--inputs-key", metavar="KEY", help="which array of that file")


def read(options: argparse.Namespace) -> Recording:
    """Read the recording and its inputs; say how."""
    recording = read_recording(
        options.data,
        key=options.key,
        time_axis=options.time_axis,
        trials_axis=options.trials_axis,
        bin_size=options.bin,
        conditions=options.condition,
    )
    print(recording.orientation)
    if options.inputs is None:
        return recording
    inputs = read_inputs(options)
    return replace(recording, inputs=inputs.data, input_names=inputs.feature_names)


def read_inputs(options: argparse.Namespace) -> Recording:
    """Read the inputs alone; say how."""
    inputs = read_recording(options.inputs, key=options.inputs_key)
    print(f"Inputs: {inputs.orientation}")
    return inputs
