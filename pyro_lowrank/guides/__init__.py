"""Guides: how particles are proposed."""
