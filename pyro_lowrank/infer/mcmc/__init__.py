"""Kernels for `pyro.infer.MCMC` that run a particle filter."""
