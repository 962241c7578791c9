"""Fixed points of low-rank networks: numpy and compiled loops only, without torch or pyro."""
