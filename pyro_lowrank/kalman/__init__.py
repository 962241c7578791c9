"""Gaussian filtering and smoothing: one mean and one covariance a trial in place of particles."""
