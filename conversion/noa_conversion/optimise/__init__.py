"""Smaller and faster ONNX graphs: simplified, in half precision, quantised. Each step counts what it changed.

A step that changed nothing is refused: a file that claims to be quantised and is not would be believed. What a reduced
format may differ by is stated in `precision_tolerance.py` and becomes part of its evidence.
"""
