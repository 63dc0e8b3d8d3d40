"""The front door: `noa ...`. Every command loads the rooms it needs when it runs, never at import."""
