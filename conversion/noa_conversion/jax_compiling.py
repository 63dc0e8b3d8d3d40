"""How noa compiles in JAX: the options of XLA that keep its CPU backend right."""

from __future__ import annotations

import functools
from typing import Any, Final

# Without the fusion of reductions: it takes in the product before it, and where that product's right operand is a
# broadcast the sum reads beyond it and changes with each compilation (jaxlib 0.10.2). Products and convolutions are
# still handed to YNNPACK one by one. `importers/jax/fills.py` keeps imported models right under any options.
_FUSIONS: Final = {
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
    )
}


def compiler_options(*, threads: int | None = None) -> dict[str, Any]:
    """Return options for `jax.jit`. `threads=1` turns XLA's thread pool off; more cannot be bounded."""
    options: dict[str, Any] = dict(_FUSIONS) if _knows_fusions() else {}
    if threads == 1:
        options["xla_cpu_multi_thread_eigen"] = False
    return options


@functools.cache
def _knows_fusions() -> bool:
    """Tell whether this jaxlib has the option; those that lack it do not fuse reductions either."""
    import jax

    try:
        jax.jit(lambda: 0, compiler_options=_FUSIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
