"""Packaged assets: model weights and texts that package clients deliver, kept in one cache."""
