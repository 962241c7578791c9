"""`pyro-lowrank demo`: fit a student to data of a noisy-oscillator teacher, and compare the two."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.cli.codes import INTERRUPTED
from pyro_lowrank.cli.files import draw, list_files, output_files
from pyro_lowrank.guides.optimal import OptimalGuide
from pyro_lowrank.infer.elbo import SMC_ELBO
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.plots.figures import new_figure, share_limits
from pyro_lowrank.plots.trajectories import plot_phase_portrait, plot_traces
from pyro_lowrank.serialization import save
from pyro_lowrank.training.fit import fit
from pyro_lowrank.training.initialise import initialise_from_data
from pyro_lowrank.training.randomness import own_generators, seed_generators
from pyro_lowrank.training.teacher import oscillator_student, oscillator_teacher

CPU = torch.device("cpu")


def run(options: argparse.Namespace) -> int:
    """Simulate, fit, compare, save; return the exit code."""
    files = output_files(options.out, "student.safetensors", "teacher.safetensors", "demo.png")
    with own_generators(CPU):
        seed_generators(CPU, options.seed)
        teacher = oscillator_teacher()
        y = teacher.simulate(num_trials=200, num_steps=75).y
        student = oscillator_student(units=20)
    train, held_out = y[:150], y[150:]
    print("Teacher: a noisy oscillator, a network of rank 2 with 20 units (Pals et al. 2024).")
    print("Data: 200 trials x 75 time bins x 20 units with Gaussian noise; 50 trials are held out.")
    print(f"Student: a network of the same form, fitted in {options.steps} steps.")
    initialise_from_data(student, train)
    guide = OptimalGuide(student)
    result = fit(
        student,
        guide,
        train,
        num_steps=options.steps,
        batch_size=30,
        num_particles=16,
        learning_rate=3e-2,
        final_learning_rate=1e-3,
        held_out=held_out,
        seed=options.seed,
    )
    save(files["teacher.safetensors"], teacher, OptimalGuide(teacher))
    save(files["student.safetensors"], student, guide)
    made = draw(files["demo.png"], lambda: _demo_figure(teacher, student, options.seed))
    _compare(teacher, student, held_out, options.seed)
    list_files(options.out, ["student.safetensors", "teacher.safetensors", *made])
    return INTERRUPTED if result.interrupted else 0


def _compare(teacher: StateSpaceModel, student: StateSpaceModel, held_out: Tensor, seed: int) -> None:
    rows = []
    with own_generators(CPU), torch.no_grad():
        for model in (teacher, student):
            seed_generators(CPU, seed)
            loss = SMC_ELBO(num_particles=256).loss(model, OptimalGuide(model), held_out)
            evidence = -loss / (held_out.shape[0] * held_out.shape[1])
            rows.append((_transition_noise(model), float(model.observation.noise_scale), evidence))
    (true_z, true_y, true_evidence), (z, noise_y, evidence) = rows
    print()
    print(f"{'':36}{'teacher':>16}{'student':>16}")
    for axis, name in enumerate(("largest", "smallest")):
        print(f"{f'transition noise std, {name} axis':36}{true_z[axis]:16.3f}{z[axis]:16.3f}")
    print(f"{'observation noise std':36}{true_y:16.3f}{noise_y:16.3f}")
    print(f"{'held-out evidence, nats per bin':36}{true_evidence:16.3f}{evidence:16.3f}")
    print("(Transition noise as the units see it, which does not depend on the latents' basis.)")


def _transition_noise(model: StateSpaceModel) -> list[float]:
    """Return the standard deviations of M eps along the principal axes that it has, largest first."""
    left = model.dynamics.left
    variances = torch.linalg.eigvalsh(left @ model.dynamics.noise_covariance @ left.mT)
    return variances[-model.dynamics.rank :].flip(0).sqrt().tolist()


def _demo_figure(teacher: StateSpaceModel, student: StateSpaceModel, seed: int) -> Any:
    figure, axes = new_figure(2, 2, width=9, height=7.5)
    plane = torch.linalg.qr(teacher.dynamics.left.detach()).Q
    for column, (model, name) in enumerate(((teacher, "teacher (true)"), (student, "student (fitted)"))):
        with own_generators(CPU):
            # Noise of their own: with the same, two networks that are alike would draw the same pictures.
            seed_generators(CPU, seed + column)
            draw = model.simulate(num_trials=15, num_steps=75)
        # Both in the plane in which the teacher's units move: latents themselves are known up to a basis only.
        seen = (draw.mean @ plane).numpy()
        plot_phase_portrait(axes[0, column], seen, title=f"{name}: latents", color=f"C{column}")
        traces = draw.y[0, :, :5].numpy()
        plot_traces(axes[1, column], traces, spacing=1.5, title=f"{name}: 5 units, one trial", color=f"C{column}")
    for row in axes:
        share_limits(row)
    axes[0, 0].legend(frameon=False, loc="upper right")
    return figure
