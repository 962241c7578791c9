"""Whether a particle filter's result can be trusted, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_lowrank.infer.calibration import Calibration, calibration_of
from pyro_lowrank.infer.posterior import SMCPosterior
from pyro_lowrank.smc.smoothing import genealogy
from pyro_lowrank.smc.transitions import BuiltInTransitions

_SMALLEST_ESS, _LARGEST_WEIGHT, _LARGEST_RHAT, _LARGEST_VARIANCE = 0.1, 0.5, 1.05, 1.0
# In nats squared: above it the log evidence is far from normal, and a few runs see too little of its lower tail.
_COLLAPSED = 10.0
_NOT_SEEN = "that says nothing of it: predictions look right as long as a few particles follow the data"


# What may propose better than each guide: the one that is in use is no advice.
_INSTEAD = {
    name: f"a guide that sees them ({others}), or more particles"
    for name, others in {
        "": "OptimalGuide where noise is Gaussian, else LaplaceGuide or EncoderGuide",
        "BootstrapGuide": "OptimalGuide where noise is Gaussian, else LaplaceGuide or EncoderGuide",
        "EncoderGuide": "OptimalGuide or LaplaceGuide, which need no training",
    }.items()
} | {
    "OptimalGuide": "more particles, or an EncoderGuide, which sees later time bins too; OptimalGuide, in use, is the "
    "best that sees one at a time",
    "LaplaceGuide": "more particles, or an EncoderGuide, which sees later time bins too",
}
_BEST = ("OptimalGuide", "LaplaceGuide")
_INSTEAD_OF_OTHERS = "a guide that sees them, or more particles"


@dataclass(frozen=True)
class Place:
    """A trial and time bin, and the effective sample size there."""

    trial: int
    time: int
    ess: float


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        num_particles: of each run.
        num_runs: independent runs.
        mean_ess: average effective sample size.
        worst: the time bins of smallest effective sample size, of the first run.
        largest_weight: of any particle at any time bin, between 0 and 1.
        resampling_rate: share of time bins before which ancestors were drawn anew.
        coalescence: time bins from the last one back to where all its particles share one ancestor, `trials`; NaN
            where they never do.
        rhat: of the filtering means over runs, its largest value over trials, bins and latents; NaN for one run.
        variance_log_evidence: over runs, `trials`, in nats squared; NaN for one run.
        suggested_particles: a lower bound of the number that would bring the largest of them to 1; None for one run.
        suggested_interval: where it may lie by chance, at 95 %, if the log evidence is normal; None for one run.
        calibration: of one-step-ahead predictions of the first run, prequential; None for a model of the user's own.
        advice: what to change, in words; empty if nothing looks bad.
    """

    num_particles: int
    num_runs: int
    mean_ess: float
    worst: tuple[Place, ...]
    largest_weight: float
    resampling_rate: float
    coalescence: Tensor
    rhat: float
    variance_log_evidence: Tensor
    suggested_particles: int | None
    calibration: Calibration | None
    advice: tuple[str, ...]
    suggested_interval: tuple[int, int] | None = None

    @property
    def collapsed(self) -> bool:
        """Whether few particles carry the filter: all numbers here are uncertain then, and look too good."""
        return self.largest_weight > _LARGEST_WEIGHT or bool((self.variance_log_evidence > _COLLAPSED).any())

    def __str__(self) -> str:
        worst = "; ".join(f"{p.ess:.1f} at trial {p.trial}, time bin {p.time}" for p in self.worst)
        never = int(self.coalescence.isnan().sum())
        met = self.coalescence[~self.coalescence.isnan()]
        back = f"{met.mean().item():.1f} time bins back on average" if len(met) else "nowhere"
        rows = [
            f"Diagnosis of {self.num_runs} run(s), {self.num_particles} particles",
            f"  effective size   {self.mean_ess:.1f} on average; worst {worst}",
            f"  largest weight   {self.largest_weight:.3f}",
            f"  resampled        {100 * self.resampling_rate:.0f} % of time bins",
            f"  paths meet       {back}; never in {never} of {len(self.coalescence)} trials",
        ]
        if self.num_runs > 1:
            rows += [
                f"  R-hat            {self.rhat:.3f} at worst",
                f"  log evidence     variance {self.variance_log_evidence.max().item():.3g} at worst; "
                f"1 with at least {_at_least(self.suggested_particles, self.suggested_interval)}",
            ]
        if self.calibration is not None:
            rows.append(f"  predictions      {self.calibration}")
            if self.collapsed:
                rows.append(f"                   (few particles carry the filter, and {_NOT_SEEN})")
        return "\n".join([*rows, *(f"  ! {line}" for line in self.advice or ("Nothing looks bad.",))])


def _worst(ess: Tensor, count: int) -> tuple[Place, ...]:
    values, where = ess.flatten().topk(min(count, ess.numel()), largest=False)
    trials = ess.shape[1]
    return tuple(
        Place(trial=i % trials, time=i // trials, ess=value)
        for value, i in zip(values.tolist(), where.tolist(), strict=True)
    )


def _coalescence(ancestors: Tensor) -> Tensor:
    """Return how many time bins back all particles of the last one share one ancestor, `trials`."""
    num_steps, num_particles, num_trials = ancestors.shape
    everyone = torch.arange(num_particles, device=ancestors.device).unsqueeze(-1).expand(-1, num_trials)
    paths = genealogy(ancestors, everyone)
    one = (paths == paths[:1]).all(0)
    times = torch.arange(num_steps, device=ancestors.device)
    latest = torch.where(one, times, -1).amax(-1)
    back = (num_steps - 1 - latest).double()
    return torch.where(latest < 0, torch.nan, back)


def _rhat(runs: Sequence[SMCPosterior], name: str) -> float:
    r"""Return the largest :math:`\sqrt{1 + B / W}`: variance between the runs' means, over that within a run."""
    means = torch.stack([run.mean(name) for run in runs])
    within = torch.stack([run.variance(name) for run in runs]).mean(0)
    ratio = means.var(0) / within.clamp(min=torch.finfo(within.dtype).tiny)
    return float((1 + ratio).sqrt().max())


def _particles_needed(num_particles: int, variance: float, num_runs: int) -> tuple[int, tuple[int, int]]:
    r"""Return the number of particles for a variance of 1, as if it fell as 1 / K, and its 95 % interval.

    .. math:: (R - 1) s^2 / \sigma^2 \sim \chi^2_{R - 1}
    """
    # Deferred: nothing else here needs it.
    from scipy.special import chdtri

    freedom = num_runs - 1
    bounds = [freedom / float(chdtri(freedom, tail)) for tail in (0.025, 0.975)]
    low, middle, high = (max(1, math.ceil(num_particles * variance * factor)) for factor in (bounds[0], 1.0, bounds[1]))
    return middle, (low, high)


def _at_least(suggested: int | None, interval: tuple[int, int] | None) -> str:
    within = "" if interval is None else f" (95 % interval {interval[0]:,} to {interval[1]:,})"
    return f"{suggested or 1:,} particles{within}"


def _advice(found: dict[str, float], needed: str, guide: str) -> tuple[str, ...]:
    rows = []
    if found["share"] < _SMALLEST_ESS:
        rows.append(
            "The effective sample size falls below a tenth of the particles: look at the data of the worst time bins, "
            f"and use {_INSTEAD.get(guide, _INSTEAD_OF_OTHERS)}."
        )
    if found["weight"] > _LARGEST_WEIGHT:
        rows.append(
            "One particle carries most of the weight somewhere: the noise may be too small for the data, or the guide "
            "may miss them."
        )
    if found["rhat"] > _LARGEST_RHAT:
        rows.append("Runs disagree on the latents (R-hat): use more particles.")
    if found["variance"] > _LARGEST_VARIANCE:
        rows.append(
            f"The log evidence varies by more than a nat between runs: use at least {needed}"
            f"{'.' if guide in _BEST else ', or a better guide.'}"
        )
    if found["variance"] > _COLLAPSED:
        rows.append(
            "The filter has collapsed: so large a variance does not fall as one over the number of particles, and the "
            "number of them that is needed is uncertain by orders of magnitude, as a rule upwards. Change the "
            f"{'model' if guide in _BEST else 'guide or the model'}. Where predictions look calibrated, {_NOT_SEEN}."
        )
    if found["coalescence"] > 0:
        rows.append("Paths share one ancestor: draw them with method='backward' or 'mcmc', not 'genealogy'.")
    return tuple(rows)


@torch.no_grad()
def diagnose(posterior: SMCPosterior | Sequence[SMCPosterior], *, name: str = "z", num_worst: int = 3) -> Diagnosis:
    r"""Look at a run of the filter as a careful statistician would; several runs tell more than one.

    The variance of the log evidence falls as one over the number of particles, once there are enough of them, which
    gives a lower bound of the number that would bring it to 1, where a pseudo-marginal chain mixes best. R-hat is
    :math:`\sqrt{1 + B / W}`, B the variance over runs of the filtering mean, W the filtering variance.

    Args:
        posterior: what `SMCFilter.run` returned, or a list of it from independent runs on the same recording.
        name: of the state tensor that R-hat looks at.
        num_worst: how many of the worst time bins, and of the worst predicted features, to name.

    Raises:
        ValueError: if the runs have different shapes.

    Example::

        >>> import pyro_lowrank as plr
        >>> model = plr.StateSpaceModel(plr.LowRankRNN(rank=2, units=9), plr.GaussianObservation(rank=2, features=3))
        >>> smc = plr.SMCFilter(model, plr.OptimalGuide(model), 50)
        >>> y = torch.randn(4, 10, 3)
        >>> diagnosis = diagnose([smc.run(y) for _ in range(4)])
        >>> diagnosis.num_runs, diagnosis.variance_log_evidence.shape
        (4, torch.Size([4]))

    References:
        Dawid (1984), J. R. Stat. Soc. A 147:278; Doucet, Pitt, Deligiannidis and Kohn (2015), Biometrika 102:295;
        Gelman and Rubin (1992), Stat. Sci. 7:457.
    """
    runs = [posterior] if isinstance(posterior, SMCPosterior) else list(posterior)
    if not runs or not all(isinstance(run, SMCPosterior) for run in runs):
        raise TypeError("`posterior` must be an SMCPosterior or a list of at least one, as `SMCFilter.run` returns.")
    shapes = {tuple(run.log_weights.shape) for run in runs}
    if len(shapes) > 1:
        raise ValueError(
            "Independent runs must have the same time bins, particles and trials, got shapes "
            f"{', '.join(map(str, sorted(shapes)))} (time x particles x trials)."
        )
    first, several = runs[0], len(runs) > 1
    num_particles = first.num_particles
    ess = torch.stack([run.ess.reshape(len(run.ess), -1) for run in runs])
    weights = torch.stack([run.log_weights for run in runs])
    evidence = torch.stack([run.log_evidence.reshape(-1) for run in runs])
    variance = evidence.var(0) if several else torch.full_like(evidence[0], torch.nan)
    needed = _particles_needed(num_particles, float(variance.max()), len(runs)) if several else (None, None)
    coalescence = _coalescence(first.ancestors.reshape(*first.ancestors.shape[:2], -1))
    rhat = _rhat(runs, name) if several else math.nan
    known = isinstance(first.transitions, BuiltInTransitions)
    calibration = calibration_of(first.prequential_pit(), num_worst) if known else None
    found = {
        "share": float(ess.min()) / num_particles,
        "weight": float(weights.max().exp()),
        "rhat": rhat,
        "variance": float(variance.max()),
        "coalescence": float((~coalescence.isnan()).sum()) if num_particles > 1 else 0.0,
    }
    return Diagnosis(
        num_particles=num_particles,
        num_runs=len(runs),
        mean_ess=float(ess.mean()),
        worst=_worst(ess[0], num_worst),
        largest_weight=found["weight"],
        # Nothing is drawn anew before the first time bin.
        resampling_rate=float(torch.stack([run.resampled[1:] for run in runs]).float().mean())
        if len(ess[0]) > 1
        else 0.0,
        coalescence=coalescence,
        rhat=rhat,
        variance_log_evidence=variance,
        suggested_particles=needed[0],
        suggested_interval=needed[1],
        calibration=calibration,
        advice=_advice(found, _at_least(*needed), first.guide) + (() if calibration is None else calibration.advice),
    )
