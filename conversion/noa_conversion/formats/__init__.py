"""Format adapters: one module per format, each with an `ADAPTER` that loads and runs it. Found through `noa.formats`."""
