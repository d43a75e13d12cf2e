"""Evaluation suites; each runs on a loaded model, never in a sharded engine."""
