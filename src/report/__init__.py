"""The report: run folders in, one self-contained page out.

`runs` reads, `groups` compares, `figures` and `headline` make charts and tables as plain data,
`panels` lay out, `page` renders. Paper, tracker and terminal get the same charts and tables.
"""
