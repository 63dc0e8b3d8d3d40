"""Format adapters: one module per format, each with an `ADAPTER` that loads it. Found through `noa.formats`."""
