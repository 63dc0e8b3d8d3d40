"""What noa costs, measured against the plain alternative in the same run: `make bench`."""
