"""JAX to ONNX: an exporter from jaxprs with free axes, in process. `export` is its one entry."""

from noa_conversion.exporters.jax_to_onnx.exporter import export

__all__ = ["export"]
