"""Evaluation suites; each runs on a loaded model or an exported folder, never in a sharded engine."""
