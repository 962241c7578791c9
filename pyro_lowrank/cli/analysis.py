"""`pyro-lowrank fixed-points`: the fixed points of a network, by stability, and whether there are others."""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from pyro_lowrank.cli.codes import INTERRUPTED
from pyro_lowrank.cli.files import draw, list_files, output_files
from pyro_lowrank.cli.tables import read_latents
from pyro_lowrank.dynamics.analysis import network_of
from pyro_lowrank.files import write_whole
from pyro_lowrank.fixed_points import FixedPoints, find_fixed_points, read_weights
from pyro_lowrank.modules import own_values
from pyro_lowrank.plots.figures import new_figure
from pyro_lowrank.plots.phase import new_space, plot_flow
from pyro_lowrank.serialization import load

TABLE, ARRAYS, FIGURE = "fixed_points.csv", "fixed_points.npz", "fixed_points.png"
DRAWN_RANKS = (1, 2, 3)


def run(options: argparse.Namespace) -> int:
    """Read the network, find its fixed points, print and save them; return the exit code."""
    arguments = _network(options.model, options.input)
    trajectories = None if options.latents is None else read_latents(options.latents)
    files = output_files(options.out, TABLE, ARRAYS, FIGURE) if options.out is not None else {}
    result = find_fixed_points(
        **arguments,
        method=options.method,
        max_boxes=options.max_boxes,
        max_seconds=options.max_seconds,
        threads=options.threads,
        num_starts=options.starts,
        seed=options.seed,
    )
    print(result)
    if options.out is not None:
        _write_table(files[TABLE], result)
        _write_arrays(files[ARRAYS], result)
        rank = result.points.shape[1]
        drawn = draw(files[FIGURE], lambda: _figure(result, trajectories)) if rank in DRAWN_RANKS else []
        list_files(options.out, [TABLE, ARRAYS, *drawn])
        if rank not in DRAWN_RANKS:
            print("There is no figure: ranks up to 3 can be drawn.")
    return INTERRUPTED if result.certificate.interrupted else 0


def _network(path: Path, u: list[float] | None) -> dict[str, Any]:
    """Arguments of the analyzer, from a file of weights or of a model."""
    if path.suffix == ".npz":
        return read_weights(path, u=u)
    dynamics = load(path)[0].dynamics
    with own_values(dynamics):
        return network_of(dynamics, u)


def _write_table(path: Path, result: FixedPoints) -> None:
    columns = result.to_dict()
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    write_whole(path, text.getvalue().encode())


def _write_arrays(path: Path, result: FixedPoints) -> None:
    certificate, sets, rank = result.certificate, result.sets, result.points.shape[1]
    content = io.BytesIO()
    np.savez(
        content,
        points=result.points,
        eigenvalues=result.eigenvalues,
        stability=result.stability,
        num_unstable=result.num_unstable,
        is_spiral=result.is_spiral,
        residuals=result.residuals,
        pieces=result.pieces,
        active=result.active,
        on_knot=result.on_knot,
        complete=np.array(certificate.complete),
        open_boxes=certificate.open_boxes,
        set_vertices=np.concatenate([np.zeros((0, rank)), *(piece.vertices for piece in sets)]),
        set_of_vertex=np.array([i for i, piece in enumerate(sets) for _ in piece.vertices], dtype=np.int64),
        set_stability=np.array([piece.stability for piece in sets], dtype=str),
    )
    write_whole(path, content.getvalue())


def _figure(result: FixedPoints, trajectories: Any) -> Any:
    if result.points.shape[1] == 3:
        figure, space = new_space()
        plot_flow(space, result, trajectories=trajectories)
        return figure
    figure, axes = new_figure(1, 1, width=7, height=5)
    plot_flow(axes[0, 0], result, trajectories=trajectories)
    return figure
