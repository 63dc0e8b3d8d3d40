"""The built-in models, each on both backends with the same parameter names and shapes."""
