"""Runs on a rank: stages, the loop, engines, checkpoints, launchers."""
