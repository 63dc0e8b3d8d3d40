"""From other libraries into ONNX: scikit-learn, XGBoost, LightGBM, Keras 3, each with its own converter and extra.

A file without code in it is converted by `convert_library_file`; live objects, as scikit-learn's, by the functions of
the modules: `from noa_conversion.from_others.sklearn_to_onnx import convert_sklearn`. Pickles are never loaded. Every
result is compared with the library's own predictions before it is kept.
"""

from noa_conversion.from_others.sources import OtherLibrary, convert_library_file, list_sources, refuse_targets

__all__ = ["OtherLibrary", "convert_library_file", "list_sources", "refuse_targets"]
