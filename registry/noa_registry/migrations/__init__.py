"""Revisions of noa's tables, run by Alembic in one transaction (see `schema_upgrade.py`).

A revision describes a change as it was on its day and imports nothing of noa that may change later. What `tables.py`
declares must equal what the newest revision leaves; a test compares them on both databases.
"""
