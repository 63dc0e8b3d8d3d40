"""Which files the tests begin with: `make test` gives whole files to its processes, in the order of the collection.

The files that take more than a minute, the slowest first, as a whole run's JUnit file tells. A file that is missing
here costs at most its own time at the end, when the other processes have nothing left to do.
"""

from __future__ import annotations

SLOWEST_FILES = (
    "conversion/test_round_trips.py",
    "cli/test_first_project.py",
    "registry/test_registry_s3.py",
    "registry/test_registry_promotion.py",
    "conversion/test_import_from_outside.py",
    "flows/test_schedules.py",
    "cli/test_demo.py",
    "registry/test_registry_migrations.py",
    "conversion/test_jax_primitives.py",
    "conversion/test_from_others.py",
    "registry/test_registry_retention.py",
    "training/test_training_worker.py",
    "flows/test_pipeline.py",
    "registry/test_registry_bootstrap.py",
    "registry/test_registry_kill_points.py",
    "cli/test_conversion_commands.py",
    "flows/test_reproduce.py",
    "cli/test_command_line.py",
    "registry/test_registry_full_disk.py",
    "registry/test_registry_faults.py",
    "registry/test_registry_search.py",
    "frame/test_docs.py",
    "conversion/test_conformance_sample.py",
    "training/test_training_jobs.py",
)
