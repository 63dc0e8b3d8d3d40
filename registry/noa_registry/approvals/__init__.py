"""Approvals: a second person says that one version may take one alias, once, for a while."""
