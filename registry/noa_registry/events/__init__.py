"""Events: what happened in the registry, written in the transaction in which it happened, and read in order."""
