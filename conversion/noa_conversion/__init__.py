"""The conversion room: in which format is a model, and does each format compute the same function?"""

from noa_conversion.api import (
    convert,
    convert_folder,
    load_format,
    measure_equivalence,
    measure_performance,
    save_native,
)
from noa_conversion.converters import CONVERTERS, Converter, conversion_chain
from noa_conversion.formats.weights_format import read_arrays
from noa_conversion.models import JaxModel, TorchModel

__all__ = [
    "CONVERTERS",
    "Converter",
    "JaxModel",
    "TorchModel",
    "conversion_chain",
    "convert",
    "convert_folder",
    "load_format",
    "measure_equivalence",
    "measure_performance",
    "read_arrays",
    "save_native",
]
