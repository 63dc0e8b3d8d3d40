"""Random keys of the generator `threefry2x32`: its bits are integer arithmetic, so that a graph can compute them.

A key is two words of 32 bits. Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3;
how keys are made, split and used is JAX's own ("partitionable") layout, where each number has a counter of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand
from noa_conversion.exporters.jax_to_onnx.complex_numbers import apply_to_parts
from noa_conversion.exporters.jax_to_onnx.dtypes import is_key
from noa_conversion.exporters.jax_to_onnx.elementwise import IDENTITIES, identity
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_MOVING = (
    *("reshape", "transpose", "squeeze", "broadcast_in_dim", "concatenate", "slice", "dynamic_slice", "rev", "gather"),
    *("dynamic_update_slice", "select_n", "split", "expand_dims", "tile"),
)


def moved(call: Call) -> Sequence[Operand]:
    """Apply a primitive that moves whole keys to each of their words."""
    if call.primitive not in _MOVING:
        raise call.refuse("this exporter has no rule for it on random keys")
    return apply_to_parts(call, [is_key(value.dtype) for value in call.inputs])


def threefry(key: tuple[Any, Any], counters: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return the two words of each pair of counters: 20 rounds, a key injected after every fourth."""
    keys = (*key, key[0] ^ key[1] ^ np.uint32(_PARITY))
    first, second = counters[0] + keys[0], counters[1] + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            first = first + second
            second = (second << np.uint32(rotation)) | (second >> np.uint32(32 - rotation))
            second = first ^ second
        first = first + keys[(group + 1) % 3]
        second = second + keys[(group + 2) % 3] + np.uint32(group + 1)
    return first, second


def _counters(call: Call, shape: Sequence[Any]) -> tuple[Any, Any]:
    """Return the place of each element of `shape`, high and low word."""
    from jax import lax
    from jax import numpy as jnp

    count = 1
    for size in shape:
        if not isinstance(size, int | np.integer):
            raise call.refuse("it draws for a free axis", received=tuple(map(str, shape)))
        count *= int(size)
    if count >= 1 << 31:
        raise call.refuse("it draws more than 2**31 numbers", received=count)
    low = lax.iota(jnp.uint32, count).reshape(tuple(int(size) for size in shape))
    return jnp.zeros_like(low), low


def _require_layout(call: Call) -> None:
    import jax

    config: Any = jax.config  # its switches are made at run time
    if not config.jax_threefry_partitionable:
        raise call.refuse("the switch `jax_threefry_partitionable` is off, whose other layout is not written")


def _bits(call: Call) -> list[Operand]:
    from jax import lax

    _require_layout(call)
    width, shape = int(call.params["bit_width"]), tuple(call.params["shape"])
    if width == 64 or width not in (8, 16, 32):
        raise call.refuse("it draws integers of 64 bits", received=width)

    def function(keys: Any) -> Any:
        words = tuple(keys[..., index].reshape(keys.shape[:-1] + (1,) * len(shape)) for index in (0, 1))
        first, second = threefry(words, _counters(call, shape))  # pyright: ignore[reportArgumentType]  # two words
        return lax.convert_element_type(first ^ second, np.dtype(f"uint{width}"))

    return list(call.trace(function, *call.inputs))


def _split(call: Call) -> list[Operand]:
    from jax import numpy as jnp

    _require_layout(call)
    shape = tuple(call.params["shape"])

    def function(keys: Any) -> Any:
        words = tuple(keys[..., index].reshape(keys.shape[:-1] + (1,) * len(shape)) for index in (0, 1))
        return jnp.stack(threefry(words, _counters(call, shape)), axis=-1)  # pyright: ignore[reportArgumentType]

    return list(call.trace(function, *call.inputs))


def _fold_in(call: Call) -> list[Operand]:
    from jax import lax
    from jax import numpy as jnp

    def function(keys: Any, data: Any) -> Any:
        number = lax.convert_element_type(data, jnp.uint32)
        return jnp.stack(threefry((keys[..., 0], keys[..., 1]), (jnp.zeros_like(number), number)), axis=-1)

    return list(call.trace(function, *call.inputs))


def _seed(call: Call) -> list[Operand]:
    from jax import lax
    from jax import numpy as jnp

    if call.inputs[0].dtype.itemsize > 4:
        raise call.refuse("its seed has 64 bits", received=call.inputs[0].dtype.name)

    def function(seed: Any) -> Any:
        number = lax.convert_element_type(seed, jnp.uint32)
        return jnp.stack([jnp.zeros_like(number), number], axis=-1)

    return list(call.trace(function, *call.inputs))


def _same_words(call: Call) -> list[Operand]:
    return list(call.inputs)


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(IDENTITIES, identity),
    "random_bits": _bits,
    "random_split": _split,
    "random_fold_in": _fold_in,
    "random_seed": _seed,
    "random_wrap": _same_words,
    "random_unwrap": _same_words,
    "random_clone": _same_words,
}
