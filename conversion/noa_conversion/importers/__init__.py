"""From ONNX into other frameworks: one interpreter, and a table of handlers per target."""
