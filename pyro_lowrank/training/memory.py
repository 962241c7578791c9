"""Whether a step fits into memory, before it is taken."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_lowrank.errors import check_positive_int, check_sequence
from pyro_lowrank.infer.elbo import SMC_ELBO
from pyro_lowrank.infer.gaussian import EKFEvidence
from pyro_lowrank.models.state_space import StateSpaceModel
from pyro_lowrank.smc.gradients import GradientEstimator
from pyro_lowrank.smc.kernels import is_built_in, is_built_in_model
from pyro_lowrank.training.available import available_bytes
from pyro_lowrank.training.batches import Batch, Batches
from pyro_lowrank.training.randomness import own_generators, seed_generators
from pyro_lowrank.training.step_memory import Extent, bytes_of_step
from pyro_lowrank.training.steps import parameters_of

# No step of a built-in pair was seen to take as many numbers per particle, time bin, and unit, latent or feature.
_MOST = 60


def memory_of(
    model: Any,
    guide: Any,
    batch: int,
    window: int,
    particles: int,
    *,
    gradient: GradientEstimator | None = None,
    backend: str = "auto",
    y: Tensor | None = None,
    u: Tensor | None = None,
) -> int:
    r"""Return how much memory a step of a fit takes at most, in bytes, beside the model and the recording itself.

    .. math:: B T\,(K a + b)

    for a batch of B trials of T time bins and K particles, where a and b depend on the gradient, the backend, the model
    and its type of floats: along particles (`PathwiseGradient`) all that a particle went through is kept, along
    smoothed paths (`FisherGradient`) only where particles were. What is kept for gradients is counted in steps of two
    and three trials, time bins and particles, and extrapolated; the rest follows from shapes. The measured peaks of
    seven configurations lay between 0.6 and 1.3 times what it tells; an allocator may hold more.

    Args:
        model: that is to be fitted.
        guide: its guide, or None.
        batch: trials, or windows, that are gone through together: of a batch in `parts` those of one part.
        window: time bins of each.
        particles: number of particles.
        gradient: as of `SMC_ELBO`.
        backend: as of `SMC_ELBO`.
        y: data that those of the batch are like, of any number of trials and time bins: missing entries take memory,
            too. Simulated, and complete, if None; a model of your own cannot do without.
        u: inputs, likewise; zeros if None.

    Raises:
        TypeError: if data are wanted and did not come.
        ValueError: if an argument does not fit.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=3, units=512), plr.PoissonObservation(rank=3, features=64))
        >>> guide = plr.BootstrapGuide(model)
        >>> along_paths = plr.memory_of(model, guide, 10, 100, 1000)
        >>> along_particles = plr.memory_of(model, guide, 10, 100, 1000, gradient=plr.PathwiseGradient())
        >>> along_paths < along_particles
        True
    """
    extent = Extent(
        check_positive_int("batch", batch),
        check_positive_int("window", window),
        check_positive_int("particles", particles),
    )
    elbo = SMC_ELBO(particles, gradient=gradient, backend=backend)
    return _without_a_trace(model, guide, elbo, _example(model, y, u), extent)


def check_memory(
    model: Any, guide: Any, elbo: SMC_ELBO | EKFEvidence, batches: Batches, trials: int, parts: int
) -> None:
    """Raise if a step of a fit cannot fit into the memory that there is; nothing is known of pairs of users' own.

    Args:
        model: that is fitted.
        guide: its guide.
        elbo: the objective.
        batches: the first of which is looked at.
        trials: that a process goes through at once.
        parts: in which it goes through its share.

    Raises:
        MemoryError: if it cannot.
    """
    own = is_built_in_model(model) if guide is None else is_built_in(model, guide)
    available = available_bytes(next(model.parameters()).device) if own else None
    if available is None:
        return
    extent = Extent(trials, batches.num_steps, getattr(elbo, "num_particles", 1))
    most = _MOST * 8 * extent.trials * extent.bins * extent.particles
    wide = batches.data.shape[-1] + model.dynamics.rank + getattr(model.dynamics, "units", 0)
    if most * wide < available:
        return
    # Not a whole batch: that may be what does not fit.
    some = torch.arange(min(3, batches.data.shape[0]))
    example = batches.data.of_windows(some, torch.zeros_like(some), min(3, extent.bins))
    needed = _without_a_trace(model, guide, elbo, example, extent)
    if needed <= available:
        return
    raise MemoryError(
        f"A step of this fit takes about {_told(needed)}, as `pyro_lowrank.memory_of` tells it for {extent.trials} "
        f"trials or windows of {extent.bins} time bins and {extent.particles} particles, and {_told(available)} are "
        f"available: pass parts={min(extent.trials * parts, 2 * parts * -(-needed // max(1, available)))} or so, "
        "fewer particles, a smaller `batch_size` or a shorter `window`."
    )


def _without_a_trace(model: Any, guide: Any, elbo: SMC_ELBO | EKFEvidence, example: Batch, extent: Extent) -> int:
    frozen = list(parameters_of(model, guide, trainable=False).values())
    with torch.enable_grad(), own_generators(example.y.device):
        seed_generators(example.y.device, 0)
        try:
            return bytes_of_step(model, guide, elbo, example, extent)
        finally:
            # Pyro makes a plain `nn.Parameter` of a `PyroModule` trainable when it is read.
            for parameter in frozen:
                parameter.requires_grad_(False)


def _example(model: Any, y: Tensor | None, u: Tensor | None) -> Batch:
    if y is not None:
        check_sequence("y", y, last=y.shape[-1] if isinstance(y, Tensor) else 0, last_name="features")
        return Batch.whole(y, u)
    if not isinstance(model, StateSpaceModel):
        raise TypeError(
            f"`y` must be data that those of the batch are like, as {type(model).__name__} is no StateSpaceModel that "
            "could simulate some: pass a few trials."
        )
    like, inputs = next(model.parameters()), model.dynamics.num_inputs
    if u is None and inputs:
        u = like.new_zeros(3, 3, inputs)
    with torch.no_grad(), own_generators(like.device):
        seed_generators(like.device, 0)
        return Batch.whole(model.simulate(3, 3, u).y.to(like.dtype), u)


def _told(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
