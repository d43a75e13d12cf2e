"""The study: which scaling, method and budget restore a model best, on short and long text.

    make study                        all of it, resumed where it stopped
    make study QUICK=1                the same machinery on a tiny model, in minutes of a CPU
    python -m benchmarks.study --time-limit 1500 --models qwen2_5_coder_0_5b --jobs 3
    python -m benchmarks.study --plan                 what is still to be run
    python -m benchmarks.study --docs                 tables and figures from the results

`grid.yaml` says what is run, and `phases.py` what follows from the rows that there are;
docs/study.md tells it in words.

Runs are chosen on validation by one number, the mean of two (`scores.py`):

    short = (student - floor) / (native - floor)    of the mean of the validation tasks
    ruler = student / native                        mean over lengths

The floor is the untrained model under position interpolation. Beyond its window the native model's
value at its longest length stands for it.

A part that is not defined (no gap, or a native model that finds nothing) is left out.

Validation has other items than the tests: `conf/eval/validation.yaml`, `conf/eval/test.yaml`.
"""
