"""DeepSpeed engines for the frozen teacher and the trained student; the only deepspeed importer.

Both models always run in an engine, also in one process on a CPU. Each engine has its own config
and wraps a module from src/passes. The teacher is never part of the student's module tree, so no
optimizer and no checkpoint holds it. A teacher that shares its weights with the student is the
student's frozen part.

`zero` holds DeepSpeed's configs and sharded weights, `ulysses` sequence parallelism, `preparation`
what both models get before DeepSpeed takes them, `teacher` and `student` the two engines.
"""
