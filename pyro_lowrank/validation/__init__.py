"""Choosing among models by what they say of data that they were not fitted to."""
