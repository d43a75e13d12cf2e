"""Packaged assets: model weights and texts from package registries, kept in one cache."""
