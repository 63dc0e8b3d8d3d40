"""Which streams settings may describe, and which of them fit a model: all that cannot work is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from pydantic import ValidationError
from serving_kit import Project, affine_model, ask, save_onnx
from stream_kit import CHAIN, build_streams, chain_model, spec, streaming

from noa.errors import SettingsError, SignatureError
from noa.settings import EndpointSettings, Feed, StreamSettings, load_settings, parse_feed
from noa.signatures import Signature
from noa_serving._http import RequestRefusedError
from noa_serving.stream_fit import fit_stream, require_second_step

LANGUAGE = Signature(
    inputs=(
        spec("tokens", "int64", "batch", "seq"),
        spec("mask", "int64", "batch", "total"),
        spec("past.0", "float32", "batch", 2, "past", 4),
        spec("past.1", "float32", "batch", 2, "past", 4),
        spec("temperature", "float32"),
    ),
    outputs=(
        spec("next", "int64", "batch", 1),
        spec("word", "string", "batch"),
        spec("flat", "int64", "batch"),
        spec("done", "bool", "batch"),
        spec("score", "float32", "batch"),
        spec("present.0", "float32", "batch", 2, "present", 4),
        spec("present.1", "float32", "batch", 2, "present", 4),
    ),
)


def fit(**stream: object) -> Any:
    return fit_stream(StreamSettings.model_validate(stream), LANGUAGE)


@pytest.mark.parametrize(
    ("text", "feed"),
    [
        ("next", Feed("next")),
        (" next ", Feed("next")),
        ("append(next)", Feed("next", True)),
        ("append(next, 1)", Feed("next", True, 1)),
        ("append( a,b , 12 )", Feed("a,b", True, 12)),
        ("append(f(x))", Feed("f(x)", True)),
        ("appended", Feed("appended")),
    ],
)
def test_what_is_fed_is_read(text: str, feed: Feed) -> None:
    assert parse_feed(text) == feed


def test_a_plan_says_what_each_step_takes_and_sends() -> None:
    plan = fit(
        feeds={"tokens": "next", "mask": "append(flat)", "past.*": "present.*"},
        initial_zeros=["past.*"],
        stop={"output": "next", "equals": [0, 2]},
        max_steps=7,
    )
    assert [(one.name, one.output, one.axis, one.is_item) for one in plan.feeds] == [
        ("tokens", "next", None, False),
        ("mask", "flat", 1, True),
        ("past.0", "present.0", None, False),
        ("past.1", "present.1", None, False),
    ]
    assert plan.optional == {"past.0", "past.1"}
    # What merely takes the place of an input is not sent, but for what ends the stream.
    assert plan.emits == ("next", "word", "flat", "done", "score")
    assert plan.stop.values == (np.int64(0), np.int64(2))
    assert plan.max_steps == 7


def test_steps_replace_append_and_begin_with_zeros() -> None:
    plan = fit(
        feeds={"tokens": "next", "mask": "append(flat, 1)", "past.*": "present.*"},
        initial_zeros=["past.*"],
        stop={"output": "next", "equals": 0},
    )
    specs = {one.name: one for one in LANGUAGE.inputs}
    given = {
        "tokens": np.array([[7, 8, 9], [1, 2, 3]]),
        "mask": np.ones((2, 3), np.int64),
        "temperature": np.float32(0.5),
    }
    first = plan.begin(given, specs)
    assert first["past.1"].shape == (2, 2, 0, 4)
    assert first["past.1"].dtype == np.float32
    assert LANGUAGE.validate(first) == 2
    outputs = {
        "next": np.array([[4], [0]]),
        "flat": np.array([1, 0]),
        "present.0": np.ones((2, 2, 3, 4), np.float32),
        "present.1": np.zeros((2, 2, 3, 4), np.float32),
    }
    second = plan.advance(first, outputs)
    assert second["tokens"] is outputs["next"]
    assert second["mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert second["past.0"] is outputs["present.0"]
    assert second["temperature"] is given["temperature"]
    assert first["mask"].shape == (2, 3)
    assert plan.has_stopped(outputs, 2).tolist() == [False, True]


def test_several_values_texts_and_booleans_end_a_stream() -> None:
    feeds = {"tokens": "next"}
    several = fit(feeds=feeds, stop={"output": "next", "equals": [0, 2]})
    assert several.has_stopped({"next": np.array([[2], [1]])}, 2).tolist() == [True, False]
    texts = fit(feeds=feeds, stop={"output": "word", "equals": "."})
    assert texts.has_stopped({"word": np.array([".", "a"], object)}, 2).tolist() == [True, False]
    flags = fit(feeds=feeds, stop={"output": "done"})
    assert flags.has_stopped({"done": np.array([False, True])}, 2).tolist() == [False, True]
    assert fit(feeds=feeds).has_stopped({}, 2).tolist() == [False, False]


def test_a_stream_may_not_grow_beyond_its_bytes() -> None:
    plan = fit(feeds={"tokens": "append(next, 1)"}, initial_zeros=[], max_bytes=1024)
    specs = {one.name: one for one in LANGUAGE.inputs}
    with pytest.raises(RequestRefusedError, match="too large") as caught:
        plan.begin({"tokens": np.zeros((1, 200), np.int64)}, specs)
    assert caught.value.status == 413
    inputs = plan.begin({"tokens": np.zeros((1, 128), np.int64)}, specs)
    with pytest.raises(RequestRefusedError, match="too large"):
        plan.advance(inputs, {"next": np.zeros((1, 1), np.int64)})


def test_what_cannot_be_joined_is_told() -> None:
    plan = fit(feeds={"tokens": "append(next, 1)"})
    with pytest.raises(RequestRefusedError, match="output `next` cannot be put behind input `tokens`") as caught:
        plan.advance({"tokens": np.zeros((2, 3), np.int64)}, {"next": np.zeros((1, 1), np.int64)})
    assert caught.value.status == 500


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        ({"feeds": {"tokns": "next"}}, ["`stream.feeds` names input `tokns`", "Did you mean `tokens`?"]),
        ({"feeds": {"tokens": "nxt"}}, ["`stream.feeds` names output `nxt`", "Did you mean `next`?"]),
        ({"feeds": {"layers.*": "present.*"}}, ["`stream.feeds` names input `layers.*`"]),
        ({"feeds": {"past.*": "presents.*"}}, ["`stream.feeds` names output `presents.0`"]),
        ({"feeds": {"past.*": "present.*", "past.0": "present.1"}}, ["names input `past.0` twice"]),
        ({"feeds": {"tokens": "score"}}, ["puts output `score` into input `tokens`", "int64", "float32"]),
        ({"feeds": {"tokens": "flat"}}, ["puts output `flat` into input `tokens`", "int64(batch, seq)"]),
        ({"feeds": {"tokens": "append(next, 0)"}}, ["parts inputs `tokens` and `mask`, which share the axis `batch`"]),
        ({"feeds": {"tokens": "append(next, 2)"}}, ["grow along an axis that is not free", "axis 2"]),
        ({"feeds": {"past.0": "append(present.0, 3)"}}, ["grow along an axis that is not free", "axis 3"]),
        ({"feeds": {"temperature": "append(score)"}}, ["does not say along which axis input `temperature` grows"]),
        (
            {"feeds": {"past.0": "append(present.0)", "past.1": "append(present.1)"}},
            None,
        ),
        ({"feeds": {"past.0": "present.0"}}, None),
        ({"feeds": {"tokens": "next"}, "initial_zeros": ["past.*"]}, ["names input `past.0`, which is not fed back"]),
        ({"feeds": {"tokens": "next"}, "initial_zeros": ["pst"]}, ["`stream.initial_zeros` names input `pst`"]),
        ({"feeds": {"tokens": "next"}, "emits": ["nxet"]}, ["`stream.emits` names output `nxet`", "`next`?"]),
        ({"feeds": {"tokens": "next"}, "stop": {"output": "nope"}}, ["`stream.stop.output` names output `nope`"]),
        ({"feeds": {"tokens": "next"}, "stop": {"output": "next"}}, ["has no `equals`", "a value of int64"]),
        (
            {"feeds": {"tokens": "next"}, "stop": {"output": "next", "equals": 0.5}},
            ["is no value of output `next`", "int64", "0.5"],
        ),
        ({"feeds": {"tokens": "next"}, "stop": {"output": "next", "equals": 1 << 63}}, ["is no value of output"]),
        ({"feeds": {"tokens": "next"}, "stop": {"output": "done", "equals": 1}}, ["is no value of output `done`"]),
        ({"feeds": {"tokens": "next"}, "stop": {"output": "word", "equals": 1}}, ["is no value of output `word`"]),
        ({"feeds": {"tokens": "next"}, "stop": {"output": "score", "equals": "a"}}, ["is no value of output `score`"]),
    ],
)
def test_what_cannot_fit_a_model_is_refused_by_name(stream: dict[str, object], said: list[str] | None) -> None:
    if said is None:
        fit(**stream)
        return
    with pytest.raises(SignatureError) as caught:
        fit(**stream)
    for words in said:
        assert words in str(caught.value)
    assert str(caught.value.facts["field"]).startswith("stream.")


def test_inputs_that_would_not_share_their_axis_any_more_are_refused() -> None:
    signature = Signature(
        inputs=(spec("tokens", "int64", "batch", "seq"), spec("mask", "int64", "batch", "seq")),
        outputs=(spec("next", "int64", "batch", 1), spec("one", "int64", "batch", 1)),
    )
    settings = StreamSettings(feeds={"tokens": "append(next, 1)"})
    with pytest.raises(SignatureError, match=r"parts inputs `tokens` and `mask`, which share the axis `seq`") as caught:
        fit_stream(settings, signature)
    assert "`tokens` grows by 1, `mask` stays as it is" in str(caught.value)
    both = StreamSettings(feeds={"tokens": "append(next, 1)", "mask": "append(one, 1)"}, emits=("next",))
    assert len(fit_stream(both, signature).feeds) == 2


def test_a_stream_of_caches_alone_must_say_what_it_sends() -> None:
    signature = Signature(inputs=(spec("x", "float32", "batch"),), outputs=(spec("y", "float32", "batch"),))
    with pytest.raises(SignatureError, match=r"`stream.emits` is not set"):
        fit_stream(StreamSettings(feeds={"x": "y"}), signature)
    assert fit_stream(StreamSettings(feeds={"x": "y"}, emits=("y",)), signature).emits == ("y",)
    with pytest.raises(SignatureError, match="names all inputs"):
        fit_stream(StreamSettings(feeds={"x": "y"}, emits=("y",), initial_zeros=("x",)), signature)


def test_what_a_model_gives_for_its_example_is_looked_at_when_it_is_loaded() -> None:
    signature = Signature(
        inputs=(spec("x", "float32", "batch", 4),), outputs=(spec("y", "float32", "batch", "somehow"),)
    )
    plan = fit_stream(StreamSettings(feeds={"x": "y"}, emits=("y",)), signature)
    x = np.zeros((1, 4), np.float32)
    require_second_step(plan, signature, {"x": x}, {"y": x})
    with pytest.raises(SignatureError, match="does not fit what the model gives for its example: input `x`"):
        require_second_step(plan, signature, {"x": x}, {"y": np.zeros((1, 5), np.float32)})
    with pytest.raises(SignatureError, match="changes how many items"):
        require_second_step(plan, signature, {"x": x}, {"y": np.zeros((2, 4), np.float32)})


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stream": {"max_steps": 3}}, "feeds nothing back"),
        ({"stream": {"feeds": {}, "stop": {"output": "done"}}}, "feeds nothing back"),
        ({"stream": {**CHAIN, "feeds": {"x": "append()"}}}, "write e.g."),
        ({"stream": {**CHAIN, "feeds": {"x": ""}}}, "write e.g."),
        ({"stream": {**CHAIN, "feeds": {"x.*": "y"}}}, "one `\\*` must stand on both sides"),
        ({"stream": {**CHAIN, "feeds": {"x": "y.*.*"}}}, "one `\\*` must stand on both sides"),
        ({"stream": {**CHAIN, "emits": ["a", "a"]}}, "`emits` names `a` twice"),
        ({"stream": {**CHAIN, "stop": {"equals": 0}}}, "`equals` says nothing without `output`"),
        ({"stream": {**CHAIN, "stop": {"output": "a", "equals": []}}}, "`equals` is an empty list"),
        ({"stream": {**CHAIN, "max_steps": 0}}, "greater than or equal to 1"),
        ({"stream": {**CHAIN, "max_streams": True}}, "valid integer"),
        ({"stream": CHAIN, "cache": {}}, "`cache` keeps whole answers"),
        ({"stream": CHAIN, "fallback": "other/1"}, "`fallback` cannot go on with the stream"),
        (
            {"stream": CHAIN, "arms": {"s": {"model": "writer@next", "share": 0.5, "mode": "shadow"}}},
            "arm `s` is a shadow",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(change: Mapping[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EndpointSettings.model_validate({"model": "writer@champion", **change})


def test_settings_are_read_from_the_file_and_misspelt_keys_are_corrected(tmp_path: Path) -> None:
    file = tmp_path / "noa.toml"
    text = (
        '[endpoints.writer]\nmodel = "writer@champion"\n[endpoints.writer.stream]\n'
        'feeds = { tokens = "append(next, 1)", "past.*" = "present.*" }\nstop = { output = "next", equals = [0, 2] }\n'
    )
    file.write_text(text)
    stream = load_settings(tmp_path, outside=()).settings.endpoints["writer"].stream
    assert stream.is_on
    assert stream.feeds == {"tokens": "append(next, 1)", "past.*": "present.*"}
    assert stream.stop.values == (0, 2)
    assert not EndpointSettings(model="writer/1").stream.is_on
    for wrong, meant in ((text + "max_step = 3\n", "max_steps"), (text.replace("stop =", "stopped ="), "stop")):
        file.write_text(wrong)
        with pytest.raises(SettingsError, match=f"Did you mean `endpoints.writer.stream.{meant}`"):
            load_settings(tmp_path, outside=())


# --- loading -------------------------------------------------------------------------------------------------------


def shapeless_model(folder: Path) -> Mapping[str, np.ndarray]:
    """`x` float32 (batch, 4) gives `y` (batch, any): twice as wide, which its signature does not say."""
    signature = Signature(inputs=(spec("x", "float32", "batch", 4),), outputs=(spec("y", "float32", "batch", "any"),))
    save_onnx(folder, signature, [helper.make_node("Concat", ["x", "x"], ["y"], axis=1)], {})
    return {"x": np.ones((2, 4), np.float32)}


def test_a_version_that_does_not_fit_is_refused_and_the_one_before_goes_on(project: Project) -> None:
    project.publish("writer", chain_model())
    project.publish("odd", shapeless_model)
    app, follower = build_streams(
        project,
        writer=streaming("writer@champion", CHAIN),
        odd=streaming("odd@champion", {"feeds": {"x": "y"}, "emits": ["y"]}),
    )
    status = ask(app, "GET", "/status").json["endpoints"]
    assert "does not fit what the model gives for its example" in status["odd"]["refused"]["reason"]  # type: ignore[index]
    project.publish("writer", affine_model(2.0))
    follower.poll()
    writer = ask(app, "GET", "/status").json["endpoints"]["writer"]  # type: ignore[index]
    assert writer["version"] == 1
    assert "`stream.feeds` names input `tokens`, which the model does not have" in writer["refused"]["reason"]
    assert ask(app, "POST", "/predict/writer", {"inputs": {"tokens": [[1, 2]]}}).status == 200
