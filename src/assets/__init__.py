"""Packaged assets: model weights and texts from packages of public registries, kept in one cache."""
