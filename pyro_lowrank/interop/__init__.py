"""Models of other programs, read into those of this library."""
