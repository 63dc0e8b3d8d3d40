"""ONNX files as plain values: read safely, named uniquely, in an order that can be walked."""
