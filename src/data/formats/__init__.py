"""Readers of packaged texts: text files, an R database, SWORD modules."""
