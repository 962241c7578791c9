"""Inference: the objective and the filter."""
