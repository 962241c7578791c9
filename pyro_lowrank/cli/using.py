"""The options of the commands that use a fitted model: `latents`, `forecast`, `simulate` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_lowrank.cli.recordings import add_recording


def add_commands(commands: Any) -> None:
    """Add the commands to the parser's."""
    about = "write the smoothed latents of a recording, with bands (.nc and .csv)"
    command = _command(commands, "latents", about, "pyro_lowrank.cli.latents", out="latents")
    _add_data(command)
    command.add_argument("--level", type=float, default=0.95, metavar="SHARE", help="within the bands (%(default)s)")
    _add_filter(command, draws=200)

    about = "draw what follows a recording, with bands (.nc and .csv)"
    command = _command(commands, "forecast", about, "pyro_lowrank.cli.forecast", out="forecast")
    _add_data(command)
    command.add_argument("--horizon", type=int, required=True, metavar="BINS", help="how many time bins ahead")
    command.add_argument(
        "--future-inputs", type=Path, metavar="FILE", help="the inputs of these time bins, for a model that has inputs"
    )
    command.add_argument("--level", type=float, default=0.95, metavar="SHARE", help="within the bands (%(default)s)")
    _add_filter(command, draws=200)

    about = "generate trials from a model (.npz with y, z and mean)"
    command = _command(commands, "simulate", about, "pyro_lowrank.cli.simulate", out="simulation")
    command.add_argument("--trials", type=int, default=10, metavar="N", help="how many (%(default)s)")
    command.add_argument("--bins", type=int, default=200, metavar="N", help="time bins of each (%(default)s)")
    command.add_argument("--inputs", type=Path, metavar="FILE", help="the inputs, which say how many trials and bins")
    command.add_argument("--inputs-key", metavar="KEY", help="which array of that file")
    command.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")

    about = "write one page with pictures on a model and its recording (report.html)"
    command = _command(commands, "report", about, "pyro_lowrank.cli.reporting", out="report")
    _add_data(command)
    command.add_argument(
        "--behaviour", type=Path, metavar="FILE", help="behaviour to decode, at the same trials and bins"
    )
    command.add_argument("--behaviour-key", metavar="KEY", help="which array of that file")
    command.add_argument("--title", default="", help="of the page; the name of the recording if left out")
    _add_filter(command, draws=100)


def _command(commands: Any, name: str, about: str, module: str, *, out: str) -> Any:
    command = commands.add_parser(name, help=about, description=about)
    command.add_argument("model", type=Path, metavar="MODEL", help="a model file that was saved or fitted here")
    command.add_argument(
        "--out", type=Path, default=Path(out), metavar="DIR", help="where files are written (%(default)s)"
    )
    command.set_defaults(module=module)
    return command


def _add_data(command: Any) -> None:
    command.add_argument("data", type=Path, metavar="DATA", help="the recording")
    add_recording(command.add_argument_group("the recording"))


def _add_filter(command: Any, *, draws: int) -> None:
    group = command.add_argument_group("the filter")
    group.add_argument("--particles", type=int, metavar="K", help="number of particles (200; without guide 1000)")
    group.add_argument("--draws", type=int, default=draws, metavar="N", help="paths of the smoother (%(default)s)")
    group.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
