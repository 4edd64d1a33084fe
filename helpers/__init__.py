"""What every lesson needs but does not teach. Importing this package does nothing else, and imports no framework."""
