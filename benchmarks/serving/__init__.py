"""noa's server against every other server that pip installs: `python -m benchmarks.serving --help`."""
