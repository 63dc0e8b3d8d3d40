"""Which files the tests begin with: `make test` gives whole files to its processes, in the order of the collection.

The files that take about half a minute and more, the slowest first, as a whole run's JUnit file tells. A file that is
missing here costs at most its own time at the end, when the other processes have nothing left to do.
"""

from __future__ import annotations

SLOWEST_FILES = (
    "conversion/test_round_trips.py",
    "cli/test_demo.py",
    "registry/test_registry_s3.py",
    "flows/test_schedules.py",
    "registry/test_registry_promotion.py",
    "cli/test_first_project.py",
    "conversion/test_from_others.py",
    "registry/test_registry_retention.py",
    "conversion/test_jax_primitives.py",
    "training/test_training_worker.py",
    "flows/test_pipeline.py",
    "registry/test_registry_kill_points.py",
    "registry/test_registry_migrations.py",
    "registry/test_registry_bootstrap.py",
    "registry/test_registry_faults.py",
    "flows/test_reproduce.py",
    "registry/test_registry_search.py",
    "registry/test_registry_store_marks.py",
    "registry/test_registry_full_disk.py",
    "conversion/test_torch_numbers_onnx.py",
    "conversion/test_import_from_outside.py",
    "training/test_training_jobs.py",
    "benchmarks/test_serving_bench.py",
    "serving/test_serving_limits.py",
    "frame/test_docs.py",
    "cli/test_changed_records.py",
    "conversion/test_conformance_sample.py",
    "registry/test_registry_mlflow.py",
)
