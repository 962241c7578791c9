"""Proposals in the compiled loops: a file each, see `base.CompiledProposal`."""
