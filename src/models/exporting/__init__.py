"""What an exported folder needs so that every reader reads the same model from it."""
