"""The strict boundary: composed YAML becomes frozen dataclasses."""
