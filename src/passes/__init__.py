"""The way through a model's layers: capture, the teacher's pass, work that is left out."""
