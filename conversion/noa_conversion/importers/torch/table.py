"""The table of PyTorch's handlers. Each module beside this one registers the operators of one topic into it."""

from __future__ import annotations

from noa_conversion.importers.registry import Handlers

HANDLERS = Handlers("torch")
register = HANDLERS.register
