"""All modules of handlers: importing this one fills the table."""

from importlib import import_module

_TOPICS = (
    *("activations", "arithmetic", "attention", "casting", "control_flow", "convolution", "indexing"),
    *("linear_algebra", "losses", "normalisation", "pooling", "quantisation", "recurrent", "reductions", "resizing"),
    *("sampling", "shaping", "signal", "tfidf"),
)

MODULES = tuple(import_module(f"{__package__}.{topic}") for topic in _TOPICS)
