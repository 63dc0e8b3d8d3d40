"""The backends: each trains one model, behind one interface (`interface.py`)."""
