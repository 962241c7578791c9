"""Observation models: how a recording depends on the latents."""
