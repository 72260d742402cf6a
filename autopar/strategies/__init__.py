"""The ways to run operations and layers on the tp axis."""
