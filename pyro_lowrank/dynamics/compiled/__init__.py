"""The units of a network in compiled loops: the plain path's numbers, fast."""
