"""Lineage: from the data of a version to the servers that answer with it, as one graph."""
