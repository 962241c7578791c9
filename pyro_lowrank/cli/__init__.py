"""The command line, `pyro-lowrank`: a thin front of the library."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyro_lowrank import __version__
from pyro_lowrank.cli.codes import INTERRUPTED, USER_ERROR
from pyro_lowrank.cli.recordings import add_recording
from pyro_lowrank.cli.using import add_commands

ACTIVATIONS = ("clipped_relu", "relu", "tanh", "softplus", "identity")
LIKELIHOODS = (
    "gaussian",
    "autoregressive",
    "student-t",
    "poisson",
    "negative-binomial",
    "bernoulli",
    "calcium",
    "bold",
)
INDICATORS = ("GCaMP6f", "GCaMP6m", "GCaMP6s")
GUIDES = ("optimal", "laplace", "bootstrap")
METHODS = ("certified", "enumerate", "search")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 2 for an error of the user's, 130 after Ctrl-C.

    Args:
        arguments: the words after `pyro-lowrank`; those of the process if None.
    """
    options = _parser().parse_args(arguments)
    if "torch" not in sys.modules:
        # Torch's threads spin for milliseconds when they have nothing to do, on cores that the compiled loops or other
        # programs want; so they sleep instead. Torch reads this when it is first imported, which is below.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        code: int = importlib.import_module(options.module).run(options)
    except (ValueError, OSError, MemoryError, ModuleNotFoundError) as error:
        print(f"pyro-lowrank: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("pyro-lowrank: interrupted", file=sys.stderr)
        return INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyro-lowrank",
        description="Stochastic low-rank recurrent networks, fitted by variational sequential Monte Carlo.",
        epilog="The environment variable OMP_NUM_THREADS tells on how many threads to run.",
    )
    parser.add_argument("--version", action="version", version=f"pyro-lowrank {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    about = "fit a student network to data of a noisy-oscillator teacher, and compare the two"
    demo = commands.add_parser("demo", help=about, description=about)
    demo.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="where files are written (%(default)s)"
    )
    demo.add_argument("--steps", type=int, default=600, metavar="N", help="steps of training (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    demo.set_defaults(module="pyro_lowrank.cli.demonstration")

    about = "fit a low-rank network to a recording (.npy, .npz, .csv, .h5, .mat, .nwb, .nc, or a Phy or Suite2p folder)"
    command = commands.add_parser("fit", help=about, description=about)
    command.add_argument("data", type=Path, metavar="DATA", help="the recording")
    command.add_argument(
        "--out", type=Path, default=Path("fit"), metavar="DIR", help="where files are written (%(default)s)"
    )
    _add_reading(command.add_argument_group("the recording"))
    _add_model(command.add_argument_group("the model"))
    _add_training(command.add_argument_group("the training"))
    command.set_defaults(module="pyro_lowrank.cli.fitting")

    about = "find the fixed points of a network, their stability, and whether there are others"
    command = commands.add_parser("fixed-points", help=about, description=about)
    _add_analysis(command)
    command.set_defaults(module="pyro_lowrank.cli.analysis")
    _add_sweep(commands)
    add_commands(commands)
    return parser


def _add_sweep(commands: Any) -> None:
    about = "fit a grid of models, scored on held-out data; any number of copies share the fits by files"
    command = commands.add_parser("sweep", help=about, description=about)
    command.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="with a file sweep.py that defines `factory`, `grid` and `data` (or the path of a recording) as "
        "pyro_lowrank.sweep takes them, and its further arguments in a dict `options`, if any; records go to "
        "FOLDER/records",
    )
    command.set_defaults(module="pyro_lowrank.cli.sweeping")


def _add_analysis(command: Any) -> None:
    command.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="a model file that was saved or fitted here, or a .npz file with decay, left, right, bias, activation",
    )
    command.add_argument("--method", default="certified", choices=METHODS, help="of finding them (%(default)s)")
    command.add_argument(
        "--input", type=float, nargs="+", metavar="U", help="a constant input, one number per input of the model"
    )
    command.add_argument("--max-boxes", type=int, metavar="N", help="stop after so many boxes, regions or starts")
    command.add_argument("--max-seconds", type=float, metavar="SECONDS", help="stop after so long")
    command.add_argument("--threads", type=int, metavar="N", help="of the certified method (all cores)")
    command.add_argument(
        "--starts", type=int, default=10_000, metavar="N", help="most starts of a search (%(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="of a search (%(default)s)")
    command.add_argument("--out", type=Path, metavar="DIR", help="where a table, arrays and a figure are written")
    command.add_argument(
        "--latents", type=Path, metavar="FILE", help="latents.csv of `pyro-lowrank latents`, drawn in the figure"
    )


def _add_reading(group: Any) -> None:
    add_recording(group)
    group.add_argument(
        "--held-out",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the trials, or of time, that is not trained on (%(default)s)",
    )
    group.add_argument(
        "--standardise",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train on features of mean 0 and variance 1 (real-valued likelihoods only, on unless refused); the saved "
        "model is in the recording's own units all the same",
    )


def _add_model(group: Any) -> None:
    group.add_argument("--rank", type=int, default=3, metavar="R", help="number of latents (%(default)s)")
    group.add_argument("--units", type=int, default=512, metavar="N", help="number of units (%(default)s)")
    group.add_argument(
        "--activation",
        default="clipped_relu",
        choices=ACTIVATIONS,
        help="of the units (%(default)s)",
    )
    group.add_argument("--likelihood", default="gaussian", choices=LIKELIHOODS, help="of the recording (%(default)s)")
    group.add_argument(
        "--noise-factors", type=int, metavar="K", help="of noise that features share (gaussian, autoregressive; 0)"
    )
    group.add_argument("--order", type=int, metavar="P", help="bins that features remember (autoregressive; 1)")
    group.add_argument("--indicator", choices=INDICATORS, help="of the fluorescence (calcium; GCaMP6f)")
    group.add_argument(
        "--guide",
        choices=GUIDES,
        help="what proposes particles (optimal for gaussian, autoregressive and bold, laplace for all others)",
    )


def _add_training(group: Any) -> None:
    group.add_argument("--steps", type=int, metavar="N", help="steps of training (3000; of windows 2000)")
    group.add_argument(
        "--window",
        type=int,
        metavar="BINS",
        help="train on windows of this length (of 100 where trials have more than 300); 0: whole trials",
    )
    group.add_argument(
        "--batch-size",
        type=int,
        metavar="B",
        help="windows, or trials, per step (some 1000 time bins together, 500 with laplace)",
    )
    group.add_argument("--particles", type=int, metavar="K", help="number of particles (bootstrap 64, others 32)")
    group.add_argument("--learning-rate", type=float, metavar="RATE", help="of the first step (0.01)")
    group.add_argument("--final-learning-rate", type=float, metavar="RATE", help="of the last step (a tenth of it)")
    group.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    group.add_argument("--resume", action="store_true", help="go on with a fit that was stopped")
