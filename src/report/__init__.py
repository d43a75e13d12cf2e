"""The report: reads run folders, and writes one self-contained page.

`runs` reads, `groups` compares, `figures` and `headline` make charts and tables as plain data,
`panels` lay out, `page` renders. Paper, tracker and terminal get the same charts and tables.
"""
