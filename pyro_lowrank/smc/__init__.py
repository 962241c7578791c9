"""Sequential Monte Carlo: weights, resampling, gradient estimators, and the one loop over time."""
