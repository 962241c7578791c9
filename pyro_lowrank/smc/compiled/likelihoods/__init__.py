"""Likelihoods in the compiled loops: a file each.

A likelihood that factorises over features is a few functions of numbers, see `base.Likelihood`; `base.register` says
which emission has which. What does not depend on the latents is left to `Likelihood.constant`, on tensors.
"""
