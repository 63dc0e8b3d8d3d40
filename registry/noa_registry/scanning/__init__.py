"""Scanning: what files from outside hold, told without running, importing or unpickling any of it."""

from noa_registry.scanning.limits import ScanLimits
from noa_registry.scanning.mlmodels import read_mlmodel
from noa_registry.scanning.report import TENSOR_DATA, Finding, ScannedFile, ScanReport, Severity
from noa_registry.scanning.scan import scan_path

__all__ = ["TENSOR_DATA", "Finding", "ScanLimits", "ScanReport", "ScannedFile", "Severity", "read_mlmodel", "scan_path"]
