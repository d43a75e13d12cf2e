"""Sweeps: many runs from one command, each in its own process.

`composition` makes jobs of a command line, `folder` finds the state of each, `local` and `cluster`
run them, and `driver` joins these. `agents` writes the same sweep for W&B's agents.
"""
