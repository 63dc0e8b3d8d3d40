"""Exporters: from a live model to the files of another format, one module per pair."""
