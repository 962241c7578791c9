"""Models: dynamics and observation model joined."""
