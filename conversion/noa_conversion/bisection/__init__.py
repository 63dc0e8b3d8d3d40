"""Bisection: which node is the first whose value differs between two models?

Two ONNX graphs are compared by the names of their values; an ONNX graph and a PyTorch program that one was exported to
the other by the names of the program's nodes; an ONNX graph and what our importer makes of it by the values that the
interpreter computes on the way.
"""

from noa_conversion.bisection.search import FirstDifference, find_first_difference

__all__ = ["FirstDifference", "find_first_difference"]
