"""Figures: each function draws on axes that it is given, and returns them."""
