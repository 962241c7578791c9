"""Likelihoods in the compiled loops, made from the expression of a density: see `base.Likelihood`."""
