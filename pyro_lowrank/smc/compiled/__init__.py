"""The particle filter and its exact adjoint as compiled loops, for built-in models: the plain path's numbers, fast."""
