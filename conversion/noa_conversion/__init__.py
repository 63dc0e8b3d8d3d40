"""The conversion room."""
