"""Posteriors in the containers of ArviZ: `InferenceData` of its 0.x releases, `DataTree` from 1.0 on."""
