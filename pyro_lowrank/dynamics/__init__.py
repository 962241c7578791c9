"""Latent dynamics: networks whose noisy state is the latent of the model."""
