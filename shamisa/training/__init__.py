"""Training: settings, runs, the step and its loop, several processes, checks while it runs."""
