"""The conversion room: in which format is a model, and does each format compute the same function?"""

from noa_conversion.api import (
    compare_models,
    convert,
    convert_folder,
    load_format,
    measure_equivalence,
    measure_performance,
    save_native,
)
from noa_conversion.converters import Converter, conversion_chain, find_converters
from noa_conversion.failed_equivalence import describe_failure
from noa_conversion.formats.weights_format import read_arrays
from noa_conversion.importing import import_onnx_to_jax, import_onnx_to_torch
from noa_conversion.model_files import ModelFiles, open_model
from noa_conversion.models import JaxModel, TorchModel

__all__ = [
    "Converter",
    "JaxModel",
    "ModelFiles",
    "TorchModel",
    "compare_models",
    "conversion_chain",
    "convert",
    "convert_folder",
    "describe_failure",
    "find_converters",
    "import_onnx_to_jax",
    "import_onnx_to_torch",
    "load_format",
    "measure_equivalence",
    "measure_performance",
    "open_model",
    "read_arrays",
    "save_native",
]
