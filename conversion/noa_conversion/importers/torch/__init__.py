"""From ONNX into PyTorch: an `fx.GraphModule` of plain ATen calls with the weights under their original names.

`importer.py` records the interpreter's walk with `make_fx`; `target.py` is what the interpreter knows of PyTorch; the
modules named after topics hold the handlers; `fusion/` puts back together what exporters take apart.
"""

from noa_conversion.importers.torch.importer import ImportedTorch, convert_onnx_to_torch, import_onnx_to_torch

__all__ = ["ImportedTorch", "convert_onnx_to_torch", "import_onnx_to_torch"]
