"""RULER (arXiv 2404.06654): 13 synthetic long-context tasks, made for the model's tokenizer."""
