"""All modules of handlers: importing this one fills the table."""

from noa_conversion.importers.torch import (
    activations,
    arithmetic,
    casting,
    convolution,
    indexing,
    linear_algebra,
    normalisation,
    reductions,
    shaping,
)

MODULES = (
    activations,
    arithmetic,
    casting,
    convolution,
    indexing,
    linear_algebra,
    normalisation,
    reductions,
    shaping,
)
