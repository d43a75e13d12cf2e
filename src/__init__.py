"""Training, evaluation and comparison of context-extension methods (LinearARD and its rivals)."""
