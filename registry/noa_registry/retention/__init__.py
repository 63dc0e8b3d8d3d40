"""Retention: the trash, what still needs a version, and the garbage collector that removes only what nothing needs."""
