"""Run the experiments and write their numbers: `python tutorials/experiments/run.py [NAME ...] --out FOLDER`.

Each writes FOLDER/NAME.json after every seed, and FOLDER/NAME.png. Seeds that are in the file already, made with the
same settings, are not run again. Without data an experiment is left out, and said so.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import matplotlib

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from PIL import Image
from shared import DataMissing, rounded

import pyro_lowrank as plr

EXPERIMENTS = (
    "fixed_points",
    "teacher_gaussian",
    "teacher_cue",
    "teacher_input",
    "teacher_poisson",
    "teacher_posterior",
    "particles",
    "estimators",
    "authors_students",
    "eeg_authors",
    "eeg",
    "eeg_ranks",
    "eeg_floors",
    "eeg_learning",
    "eeg_memory",
    "premotor_reach",
    "premotor_delay",
    "premotor_generation",
    "mc_maze",
    "hippocampus_track",
    "hippocampus_maze",
    "lorenz05",
    "lorenz10",
    "bursting",
    "known_networks",
    "gradient_bias",
    "calcium_spikes",
    "bold_forecast",
)


def summary(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Return the median and the range over seeds of every number."""
    names = [name for name, value in rows[0].items() if isinstance(value, (int, float)) and name != "seed"]
    table = {name: np.array([row[name] for row in rows], dtype=float) for name in names}
    return {name: {"median": np.median(v), "min": v.min(), "max": v.max(), "n": len(v)} for name, v in table.items()}


def load(path: Path, settings: dict) -> list[dict]:
    """Return the rows of an earlier run with the same settings."""
    if not path.is_file():
        return []
    record = json.loads(path.read_text(encoding="utf-8"))
    return record["rows"] if record["settings"] == settings else []


def write(path: Path, module: ModuleType, settings: dict, rows: list[dict], *, reduced: bool) -> dict:
    """Write the record of an experiment, all or nothing, and return it."""
    record = {
        "experiment": module.__name__,
        "reduced": reduced,
        "settings": settings,
        "reference": module.REFERENCE,
        "goal": module.GOAL,
        "summary": rounded(summary(rows)),
        "rows": rounded(sorted(rows, key=lambda row: row["seed"])),
        "made_with": {"pyro_lowrank": plr.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    return record


def picture(path: Path, module: ModuleType, record: dict) -> None:
    """Write the picture of an experiment."""
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(8, 3.2), dpi=90, layout="constrained")
        module.draw(figure, record)
        figure.savefig(path)
    # A third of the size; other methods lose the colours of what is small.
    reduced = Image.open(path).convert("RGB").quantize(64, method=Image.Quantize.MAXCOVERAGE, kmeans=1)
    reduced.save(path, optimize=True)


def run(name: str, folder: Path, seeds: list[int] | None, *, reduced: bool) -> dict:
    """Run the seeds of one experiment that are not there yet; return its record."""
    module = importlib.import_module(name)
    chosen = module.REDUCED if reduced else module.FULL
    settings = json.loads(json.dumps(asdict(chosen)))
    path = folder / f"{name}.json"
    rows = load(path, settings)
    record = {}
    own = (0,) if reduced else getattr(module, "SEEDS", range(5))
    for seed in own if seeds is None else seeds:
        if seed in [row["seed"] for row in rows]:
            continue
        started = time.perf_counter()
        row = module.run(seed, chosen)
        rows.append({"seed": seed, **row, "seconds": time.perf_counter() - started})
        record = write(path, module, settings, rows, reduced=reduced)
        numbers = {key: value for key, value in rounded(rows[-1]).items() if isinstance(value, (int, float))}
        print(f"{name}:", ", ".join(f"{key} {value:g}" for key, value in numbers.items()), flush=True)
    record = record or write(path, module, settings, rows, reduced=reduced)
    picture(folder / f"{name}.png", module, record)
    return record


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(EXPERIMENTS)}; all if none is given")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--seeds", type=int, nargs="+", help="those of the experiment if not given, as a rule 0 to 4")
    parser.add_argument("--reduced", action="store_true", help="small settings, seed 0: seconds each, crude numbers")
    parser.add_argument("--draw", action="store_true", help="run nothing: draw what lies in the folder already")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(EXPERIMENTS))
    if unknown:
        parser.error(f"there is no experiment {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or EXPERIMENTS:
        path = arguments.out / f"{name}.json"
        if arguments.draw:
            if path.is_file():
                record = json.loads(path.read_text(encoding="utf-8"))
                picture(path.with_suffix(".png"), importlib.import_module(name), record)
            continue
        try:
            run(name, arguments.out, arguments.seeds, reduced=arguments.reduced)
        except DataMissing as reason:
            print(f"{name}: left out. {reason}")


if __name__ == "__main__":
    main()
