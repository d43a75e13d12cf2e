"""Sweeps: many runs from one command, each in a process of its own.

`composition` makes jobs of a command line, `folder` knows what has become of each, `local` and
`cluster` run them, `driver` is the whole. `agents` writes the same sweep for W&B's agents.
"""
