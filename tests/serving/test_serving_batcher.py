"""Batches: what shares a run, what each caller gets from it, and what is dropped, expired or refused before it runs."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noa.errors import InvalidInputError
from noa.settings import ServingSettings
from noa.signatures import Signature, TensorSpec
from noa_serving._admission import Admission
from noa_serving._batcher import Outcome
from noa_serving._computing import Computing
from noa_serving._deadline import Deadline
from noa_serving._generation import Generation, build_generation
from noa_serving._http import RequestRefusedError, Response
from noa_serving._prepared import Prepared

BAD = -1.0


class Model:
    """A model in numpy: `y = scale * x`. It refuses rows that hold `BAD`, and waits for `gate` before each run."""

    def __init__(self, scale: float = 2.0, *, axis: str = "batch", free: bool = False) -> None:
        shape = (axis, "seq" if free else 2)
        self.signature = Signature(
            inputs=(TensorSpec(name="x", dtype="float32", shape=shape),),
            outputs=(TensorSpec(name="y", dtype="float32", shape=shape),),
        )
        self.scale = np.float32(scale)
        self.runs: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Event()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.runs.append(len(inputs["x"]))
        self.began.set()
        assert self.gate.wait(20)
        if (inputs["x"] == BAD).any():
            raise InvalidInputError("a value is out of range")
        return {"y": inputs["x"] * self.scale}


class MeanModel(Model):
    """Subtracts the mean over the batch, so that each answer depends on the others."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] - inputs["x"].mean(axis=0, keepdims=True)}


class CompilingModel(Model):
    """Takes long for each size that it has not seen."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if len(inputs["x"]) not in self.runs:
            time.sleep(0.05)
        return super().run(inputs)


def generation(model: Model, number: int = 1, **changes: object) -> Generation:
    built = build_generation(
        model,
        endpoint="e",
        model="m",
        number=number,
        digest=f"sha256:{number}",
        format="onnx",
        example={"x": np.array([[1, 2], [3, 5]], dtype=np.float32)},
    )
    model.runs.clear()
    model.began.clear()
    return _replace(built, **changes)


def _replace(built: Generation, **changes: object) -> Generation:
    import dataclasses

    batching = dataclasses.replace(built.batching, **changes.pop("batching", {}))  # type: ignore[arg-type]
    return dataclasses.replace(built, batching=batching, **changes)  # type: ignore[arg-type]


def quick(model: Model, **changes: object) -> Generation:
    return generation(model, inline_items=64, batching={"best_items": 8}, **changes)


def slow(model: Model, best: int = 8, **changes: object) -> Generation:
    return generation(model, inline_items=0, batching={"best_items": best}, **changes)


def prepared(on: Generation, *values: float, width: int = 2) -> Prepared:
    rows = np.array([[value] * width for value in values], dtype=np.float32)
    return Prepared(on, {"x": rows}, len(rows), lambda outputs: Response(200, outputs["y"].tobytes()))


class Room:
    """One worker's computing, and what was told to whom in which order."""

    def __init__(self, *, limit: int = 256, **options: object) -> None:
        serving = ServingSettings.model_validate({"p99_target_ms": 5000.0, **options})
        self.admission = Admission(limit)
        self.pool = ThreadPoolExecutor(max_workers=2)
        self.computing = Computing(self.admission, self.pool, serving, 2)
        self.told: dict[str, Outcome] = {}

    def submit(self, name: str, one: Prepared, deadline: Deadline | None = None) -> Callable[[], None]:
        with self.computing.enter() as place:
            job = self.computing.submit(
                one, place, deadline or Deadline.after(20.0), lambda outcome: self.told.update({name: outcome})
            )
        return job.drop

    def values(self, name: str) -> list[float]:
        outcome = self.told[name]
        assert isinstance(outcome, Mapping), outcome
        return outcome["y"][:, 0].tolist()

    def status(self, name: str) -> int:
        outcome = self.told[name]
        assert isinstance(outcome, RequestRefusedError)
        return outcome.status

    async def until(self, *names: str) -> None:
        async with asyncio.timeout(20):
            while not set(names) <= set(self.told):
                await asyncio.sleep(0.002)

    async def until_empty(self) -> None:
        async with asyncio.timeout(20):
            while self.admission.in_flight:
                await asyncio.sleep(0.002)


def test_one_turn_of_the_loop_is_one_batch_and_each_gets_its_own_answer() -> None:
    model = Model()
    on = quick(model)

    async def main() -> None:
        room = Room()
        for index in range(3):
            room.submit(str(index), prepared(on, *[float(index + 1)] * (index + 1)))
        assert room.told == {}
        await asyncio.sleep(0)
        assert model.runs == [6]
        assert [room.values(str(index)) for index in range(3)] == [[2.0], [4.0, 4.0], [6.0, 6.0, 6.0]]
        assert room.admission.in_flight == 0

    asyncio.run(main())


def test_a_full_batch_does_not_wait_and_a_large_request_goes_alone() -> None:
    model = Model()
    on = quick(model)

    async def main() -> None:
        room = Room()
        room.submit("large", prepared(on, *[3.0] * 9))
        assert room.values("large") == [6.0] * 9
        for index in range(9):
            room.submit(str(index), prepared(on, float(index)))
        assert model.runs == [9, 8]
        await asyncio.sleep(0)
        assert model.runs == [9, 8, 1]
        assert room.values("8") == [16.0]

    asyncio.run(main())


def test_generations_and_shapes_do_not_mix() -> None:
    old, new, free = Model(2.0), Model(3.0), Model(2.0, free=True)
    first, second, any_length = quick(old), quick(new, number=2), quick(free)

    async def main() -> None:
        room = Room()
        for index in range(4):
            room.submit(f"old{index}", prepared(first, 1.0))
            room.submit(f"new{index}", prepared(second, 1.0))
            room.submit(f"free{index}", prepared(any_length, 1.0, width=2 + index % 2))
        await asyncio.sleep(0)
        assert (old.runs, new.runs, free.runs) == ([4], [4], [2, 2])
        assert {tuple(room.values(f"old{index}")) for index in range(4)} == {(2.0,)}
        assert {tuple(room.values(f"new{index}")) for index in range(4)} == {(3.0,)}

    asyncio.run(main())


@pytest.mark.parametrize("make", [quick, slow])
def test_a_bad_item_is_refused_alone(make: Callable[[Model], Generation]) -> None:
    model = Model()
    on = make(model)

    async def main() -> None:
        room = Room()
        for index in range(7):
            room.submit(str(index), prepared(on, BAD if index == 4 else float(index)))
        await room.until(*map(str, range(7)))
        assert room.status("4") == 400
        assert [room.values(str(index)) for index in range(7) if index != 4] == [[2.0 * i] for i in range(7) if i != 4]
        assert room.admission.in_flight == 0
        room.pool.shutdown()

    asyncio.run(main())


def test_a_queue_sends_when_the_model_is_free_and_grows_its_batches_meanwhile() -> None:
    model = Model()
    on = slow(model)

    async def main() -> None:
        room = Room()
        model.gate.clear()
        room.submit("0", prepared(on, 0.0))
        await asyncio.sleep(0)
        assert model.began.wait(20)
        for index in range(1, 12):
            room.submit(str(index), prepared(on, float(index)))
            await asyncio.sleep(0)
        assert room.computing.queue.waiting_items == 11
        model.gate.set()
        await room.until(*map(str, range(12)))
        assert model.runs == [1, 8, 3]
        assert [room.values(str(index)) for index in range(12)] == [[2.0 * index] for index in range(12)]
        assert (room.admission.in_flight, room.computing.queue.waiting_items) == (0, 0)
        room.pool.shutdown()

    asyncio.run(main())


def test_a_request_waits_for_others_only_as_long_as_is_set() -> None:
    model = Model()
    on = slow(model)

    async def main() -> None:
        room = Room(max_queue_delay_us=1_000_000)
        room.submit("0", prepared(on, 0.0))
        for _ in range(3):
            await asyncio.sleep(0)
        assert room.computing.queue.waiting_items == 1
        room.submit("1", prepared(on, 1.0))
        await room.until("0", "1")
        assert model.runs == [2]
        for index in range(8):
            room.submit(str(index), prepared(on, 1.0))
        await asyncio.sleep(0)
        assert room.computing.queue.waiting_items == 0  # a full batch does not wait
        await room.until(*map(str, range(8)))
        await room.until_empty()
        assert model.runs == [2, 8]
        room.pool.shutdown()

    asyncio.run(main())


def test_what_is_dropped_or_expired_is_not_computed_and_its_place_is_free() -> None:
    model = Model()
    on = slow(model)

    async def main() -> None:
        room = Room()
        model.gate.clear()
        room.submit("running", prepared(on, 1.0), Deadline.after(0.05))
        await asyncio.sleep(0)
        assert model.began.wait(20)
        on_cost_free = room.computing.queue
        drop = room.submit("dropped", prepared(on, 2.0))
        room.submit("kept", prepared(on, 3.0))
        assert (room.admission.in_flight, on_cost_free.waiting_items) == (3, 2)
        drop()
        assert (room.admission.in_flight, on_cost_free.waiting_items) == (2, 1)
        room.submit("expired", prepared(on, 4.0), Deadline.after(0.05))
        await room.until("running", "expired")
        assert (room.status("running"), room.status("expired")) == (504, 504)
        assert room.admission.in_flight == 2  # the one that still runs, and the one that waits
        model.gate.set()
        await room.until("kept")
        assert model.runs == [1, 1]
        assert "dropped" not in room.told
        await room.until_empty()
        room.pool.shutdown()

    asyncio.run(main())


def test_a_quick_request_that_is_dropped_or_late_is_not_computed() -> None:
    model = Model()
    on = quick(model)

    async def main() -> None:
        room = Room()
        room.submit("dropped", prepared(on, 1.0))()
        room.submit("late", prepared(on, 2.0), Deadline.after(0.0))
        room.submit("kept", prepared(on, 3.0))
        await asyncio.sleep(0)
        assert (model.runs, room.status("late"), room.values("kept")) == ([1], 504, [6.0])
        assert set(room.told) == {"late", "kept"}
        assert room.admission.in_flight == 0

    asyncio.run(main())


def test_the_queue_is_bounded_in_items_and_bytes() -> None:
    model = Model()
    on = slow(model)

    async def main() -> None:
        for options in ({"max_queue_items": 3}, {"max_queue_bytes": 3 * 8}):
            room = Room(**options)
            model.gate.clear()
            model.began.clear()
            room.submit("running", prepared(on, 0.0))
            await asyncio.sleep(0)
            assert model.began.wait(20)
            room.submit("fits", prepared(on, *[1.0] * 3))
            with pytest.raises(RequestRefusedError) as refused:
                room.submit("one more", prepared(on, 1.0))
            assert (refused.value.status, refused.value.retry_after_s) == (503, 1)
            assert room.admission.in_flight == 2
            model.gate.set()
            await room.until("running", "fits")
            room.pool.shutdown()

    asyncio.run(main())


class SlowModel(Model):
    """Takes 50 ms a run."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        time.sleep(0.05)
        return super().run(inputs)


def test_a_deadline_that_the_queue_cannot_meet_is_refused_at_once() -> None:
    model = SlowModel()
    on = slow(model, best=2)

    async def main() -> None:
        room = Room()
        for index in range(3):  # how fast it is must have been seen
            room.submit(str(index), prepared(on, 0.0))
            await room.until(str(index))
        model.gate.clear()
        model.began.clear()
        room.submit("running", prepared(on, 0.0))
        await asyncio.sleep(0)
        assert model.began.wait(20)
        for index in range(10):
            room.submit(f"waits{index}", prepared(on, 1.0))
        refusals = room.admission.refused
        with pytest.raises(RequestRefusedError) as refused:
            room.submit("hopeless", prepared(on, 1.0), Deadline.after(0.1))
        assert (refused.value.status, refused.value.retry_after_s is not None) == (503, True)
        assert (room.admission.refused, room.admission.in_flight) == (refusals + 1, 11)
        room.submit("patient", prepared(on, 1.0), Deadline.after(1000.0))
        model.gate.set()
        await room.until("running", "patient")
        assert "hopeless" not in room.told
        await room.until_empty()
        room.pool.shutdown()

    asyncio.run(main())


def test_what_was_measured_at_warm_up_alone_refuses_nothing() -> None:
    model = Model()
    cost = generation(model).cost
    on = slow(model, cost=type(cost)(fixed_s=60.0, per_item_s=60.0))

    async def main() -> None:
        room = Room(p99_target_ms=10e6)
        for index in range(20):
            room.submit(str(index), prepared(on, 0.0), Deadline.after(20.0))
            await asyncio.sleep(0)
        await room.until(*map(str, range(20)))
        assert room.admission.refused == 0
        room.pool.shutdown()

    asyncio.run(main())


def test_a_batch_is_so_small_that_two_of_them_meet_the_target() -> None:
    model = Model()
    cost = generation(model).cost
    on = slow(model, cost=type(cost)(fixed_s=0.01, per_item_s=0.01), best=64)

    async def main() -> None:
        room = Room(p99_target_ms=100.0)  # 10 ms + 4 * 10 ms are half of it
        for index in range(8):
            room.submit(str(index), prepared(on, 1.0))
        await room.until(*map(str, range(8)))
        assert model.runs[0] == 4
        room.pool.shutdown()

    asyncio.run(main())


def test_a_giant_does_not_hold_up_what_comes_after_it() -> None:
    giant = Model()
    on = slow(giant)

    async def main() -> None:
        room = Room(p99_target_ms=20.0)
        giant.gate.clear()
        room.submit("giant", prepared(on, *[1.0] * 64))
        await asyncio.sleep(0)
        assert giant.began.wait(20)
        room.submit("small", prepared(on, 2.0))
        async with asyncio.timeout(20):
            while len(giant.runs) < 2:  # begun beside the giant
                await asyncio.sleep(0.002)
        giant.gate.set()
        await room.until("giant", "small")
        room.pool.shutdown()

    asyncio.run(main())


def test_a_place_that_waits_for_the_end_of_the_turn_does_not_make_the_server_busy() -> None:
    model = Model()
    on = generation(model, inline_items=64, batching={"best_items": 64})

    async def main() -> None:
        room = Room(limit=4)
        for index in range(10):
            room.submit(str(index), prepared(on, 1.0))
        await asyncio.sleep(0)
        assert (model.runs, room.admission.refused, len(room.told)) == ([4, 4, 2], 0, 10)

    asyncio.run(main())


def test_batching_can_be_turned_off() -> None:
    model = Model()
    on, in_queue = quick(model), slow(model)

    async def main() -> None:
        room = Room(batching=False)
        for index in range(4):
            room.submit(str(index), prepared(on if index % 2 else in_queue, 1.0))
        await room.until(*"0123")
        assert model.runs == [1, 1, 1, 1]
        room.pool.shutdown()

    asyncio.run(main())


def test_a_caller_that_is_cancelled_takes_its_work_out_of_the_queue() -> None:
    model = Model()
    on = slow(model)

    async def main() -> None:
        room = Room()
        model.gate.clear()
        room.submit("running", prepared(on, 0.0))
        await asyncio.sleep(0)
        assert model.began.wait(20)

        async def ask() -> None:
            with room.computing.enter() as place:
                await room.computing.run(prepared(on, 1.0), place, Deadline.after(20.0))

        asking = asyncio.create_task(ask())
        await asyncio.sleep(0)
        assert room.admission.in_flight == 2
        asking.cancel()
        await asyncio.sleep(0)
        assert (room.admission.in_flight, room.computing.queue.waiting_items) == (1, 0)
        model.gate.set()
        await room.until("running")
        assert model.runs == [1]
        room.pool.shutdown()

    asyncio.run(main())


def test_an_idle_queue_keeps_no_generation_alive() -> None:
    async def main() -> None:
        room = Room()
        on = slow(Model(free=True))
        alive = weakref.ref(on)
        room.submit("0", prepared(on, 1.0))
        await room.until("0")
        await room.until_empty()
        room.told.clear()
        del on
        async with asyncio.timeout(20):
            while gc.collect() is not None and alive() is not None:
                await asyncio.sleep(0.002)
        room.pool.shutdown()

    asyncio.run(main())


def test_a_model_whose_answers_depend_on_the_batch_is_never_batched() -> None:
    refused = generation(MeanModel()).batching
    assert (refused.best_items, refused.refusal) == (1, "output `y` of an item depends on the items beside it")
    assert generation(Model()).batching.refusal is None


def test_a_model_without_a_batch_axis_in_front_is_never_batched() -> None:
    model = Model()
    shape: tuple[int | str, ...] = (2, 2)
    model.signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=shape),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=shape),),
    )
    assert generation(model).batching.refusal == "input `x` has no batch axis in front"


def test_a_runtime_that_compiles_each_size_gets_only_sizes_that_are_warm() -> None:
    model = CompilingModel()
    on = generation(model)
    assert on.batching.buckets[:3] == (1, 2, 4)
    outputs = on.compute({"x": np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)}, 3)
    assert model.runs == [4]
    assert outputs["y"].tolist() == [[2, 4], [6, 8], [10, 12]]


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.booleans(), st.lists(st.sampled_from([BAD, 0.0, 1.0, 7.0]), min_size=1, max_size=5)), max_size=20
    ),
    pauses=st.sets(st.integers(0, 19)),
)
def test_batched_is_as_one_by_one(requests: list[tuple[bool, list[float]]], pauses: set[int]) -> None:
    model = Model()
    generations = {True: quick(model), False: slow(model)}

    async def main() -> None:
        room = Room()
        for index, (is_quick, values) in enumerate(requests):
            room.submit(str(index), prepared(generations[is_quick], *values))
            if index in pauses:
                await asyncio.sleep(0)
        await room.until(*(str(index) for index in range(len(requests))))
        for index, (_, values) in enumerate(requests):
            if BAD in values:
                assert room.status(str(index)) == 400
            else:
                assert room.values(str(index)) == [2.0 * value for value in values]
        await room.until_empty()
        room.pool.shutdown()

    asyncio.run(main())
