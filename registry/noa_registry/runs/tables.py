"""MLflow's tables of the data that runs used. Its other tables are in `noa_registry.tables`."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, Text

run_metadata = MetaData()

DATASET: Final = "DATASET"
RUN: Final = "RUN"

mlflow_datasets = Table(
    "datasets",
    run_metadata,
    Column("experiment_id", Integer, primary_key=True, autoincrement=False),
    Column("name", String(500), primary_key=True),
    Column("digest", String(36), primary_key=True),
    Column("dataset_uuid", String(36)),
    Column("dataset_source_type", String(36)),
    Column("dataset_source", Text),
    Column("dataset_schema", Text),
    Column("dataset_profile", Text),
)

mlflow_inputs = Table(
    "inputs",
    run_metadata,
    Column("source_type", String(36), primary_key=True),
    Column("source_id", String(36), primary_key=True),
    Column("destination_type", String(36), primary_key=True),
    Column("destination_id", String(36), primary_key=True),
    Column("input_uuid", String(36)),
    Column("step", BigInteger),
)

mlflow_input_tags = Table(
    "input_tags",
    run_metadata,
    Column("input_uuid", String(36), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("value", String(500)),
)
