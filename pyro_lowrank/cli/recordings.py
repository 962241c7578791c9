"""The recording that a command is told of, with its inputs and conditions."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyro_lowrank.data import Recording, read_recording, read_suite2p

# Likelihoods that remember the latents for so many seconds.
IN_SECONDS = ("calcium", "bold")


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
        "`spike_times` of a .npz file) are counted, needed for these; counts in shorter bins are summed; of "
        "--likelihood calcium or bold, and of a folder of Suite2p, the time from frame to frame",
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
    # Fluorescence and BOLD are no counts, which are summed.
    in_seconds = getattr(options, "likelihood", "") in IN_SECONDS
    if options.data.is_dir() and (options.data / "F.npy").is_file():
        if options.bin is None:
            raise ValueError(
                f"{options.data} is a folder of Suite2p: pass `--bin SECONDS`, the time from frame to frame."
            )
        recording = read_suite2p(options.data, bin_size=options.bin)
    else:
        recording = read_recording(
            options.data,
            key=options.key,
            time_axis=options.time_axis,
            trials_axis=options.trials_axis,
            bin_size=None if in_seconds else options.bin,
            conditions=options.condition,
        )
        if in_seconds and options.bin is not None:
            recording = _with_bin(recording, options.bin)
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


def _with_bin(recording: Recording, seconds: float) -> Recording:
    if recording.bin_size is not None and not math.isclose(recording.bin_size, seconds, rel_tol=0.02):
        raise ValueError(
            f"The file tells {recording.bin_size:g} s from frame to frame, and --bin {seconds:g} came: leave `--bin` "
            "out."
        )
    return replace(recording, bin_size=seconds)
