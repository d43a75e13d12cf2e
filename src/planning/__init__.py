"""What a run costs and whether it can run, before anything is loaded."""
