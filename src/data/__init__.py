"""From texts to token blocks: read sources, hold documents out, tokenize once, cut and shuffle.

`DataConfig` describes a corpus. `prepare_corpus` makes a `Corpus` of it. The corpus gives `Blocks`,
which are random-access, sharded over ranks and resumable at any index.
"""
