"""Models: their settings, configs, files and weights, and what is scaled or trained in them."""
