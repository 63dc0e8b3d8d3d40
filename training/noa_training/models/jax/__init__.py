"""The built-in models in JAX: one pure function over nested dicts of arrays per model, named as its layout."""
