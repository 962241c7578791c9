"""Every fixed point of the network of figure 8 of the paper, and what it costs to be sure of them."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from shared import Teacher, draw_fixed_points

from pyro_lowrank.fixed_points import find_fixed_points

REFERENCE = {"points": "17", "solves": "3601 (all linear regions)"}
GOAL = {"points": 17, "solves": 400}
SEEDS = (0,)  # nothing random


@dataclass(frozen=True)
class Settings:
    """The networks of 60 and of 128 units."""

    networks: tuple[str, ...] = ("reach_rnn", "reach_rnn_128")


FULL, REDUCED = Settings(), Settings(networks=("reach_rnn",))


def run(seed: int, settings: Settings) -> dict:
    """Count the fixed points of each network by proof, and in all linear regions."""
    networks = {}
    for name in settings.networks:
        network = Teacher.load(name).network
        row = {}
        for method in ("certified", "enumerate"):
            find_fixed_points(*network, method=method, max_boxes=1)  # compiles
            started = time.perf_counter()
            found = find_fixed_points(*network, method=method)
            row[method] = {
                "points": len(found),
                "solves": found.certificate.solves,
                "complete": found.certificate.complete,
                "stability": dict(Counter(found.stability.tolist())),
                "seconds": time.perf_counter() - started,
            }
            row["z"], row["kind"] = found.points, found.stability.tolist()
        networks[name] = row
    certified = networks[settings.networks[0]]["certified"]
    return {"points": certified["points"], "solves": certified["solves"], "networks": networks}


def draw(figure, record: dict) -> None:
    """Draw the fixed points of each network in the plane of its latents."""
    networks = record["rows"][0]["networks"]
    for axes, (name, row) in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks.items(), strict=True):
        draw_fixed_points(axes, row["z"], row["kind"])
        axes.set(title=f"{name}: {row['certified']['solves']} solves")
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
