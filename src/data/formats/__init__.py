"""Readers of packaged texts: an R database, SWORD modules, and what else packages hold."""
