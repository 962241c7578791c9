"""Reading recordings from files."""

from pyro_lowrank.data.recordings import Recording, read_recording

__all__ = ["Recording", "read_recording"]
