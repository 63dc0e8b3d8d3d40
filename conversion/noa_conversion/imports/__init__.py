"""Importing: a model from outside becomes a sealed version, after it was scanned. Nothing of it runs on the way."""

from noa_conversion.imports.importer import ImportPlan, ImportResult, import_model, plan_import

__all__ = ["ImportPlan", "ImportResult", "import_model", "plan_import"]
