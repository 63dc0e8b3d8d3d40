"""The built-in models in PyTorch: one module of torch layers per model, named as its layout."""
