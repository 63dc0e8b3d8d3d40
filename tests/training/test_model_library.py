"""The library's models: one layout, the same tree and values on both backends, and weights that go both ways whole."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast, get_type_hints

import jaxtyping
import numpy as np
import pytest
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from library_kit import BACKENDS, CASES, LENGTH, TEXT, VOCABULARY, recipe_of, shape_of, trainer_of

import noa_training
from noa.errors import InvalidInputError, RecipeError
from noa.signatures import TensorSpec
from noa_training import (
    MODELS,
    ModelShape,
    cnn,
    decoder_lm,
    gru,
    mlp,
    resnet,
    state_dict_from_tree,
    tabular_resnet,
    transformer_encoder,
    tree_from_state_dict,
    vit,
)
from noa_training.model_specs import Activation
from noa_training.models.library import BuiltIn
from noa_training.models.resnet import Block
from noa_training.models.weights import initial_weights, layout_of
from samples import mostly

if TYPE_CHECKING:
    from types import ModuleType

pytestmark = [pytest.mark.torch, pytest.mark.jax]


def model_of(name: str) -> BuiltIn:
    return CASES[name].model


@pytest.mark.parametrize("name", CASES)
def test_both_backends_have_the_tree_of_the_layout_and_its_first_values(name: str) -> None:
    layout = layout_of(model_of(name), shape_of(name))
    first = initial_weights(model_of(name), shape_of(name), seed=recipe_of(name).seed)
    assert {entry.name: entry.shape for entry in layout} == {key: value.shape for key, value in first.items()}
    for backend in BACKENDS:
        weights = trainer_of(backend, name).state().weights
        assert set(weights) == set(first), backend
        for key, value in first.items():
            assert weights[key].dtype == value.dtype == np.float32
            np.testing.assert_array_equal(weights[key], value, err_msg=f"{backend} {key}")


@pytest.mark.parametrize("name", mostly("conformance", CASES, sample=("resnet",)))
def test_outputs_are_equal_within_rounding(name: str) -> None:
    split = CASES[name].split
    outputs = [trainer_of(backend, name).predict(split) for backend in BACKENDS]
    assert np.isfinite(outputs[0]).all() and np.std(outputs[0]) > 0
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


def test_each_name_of_the_library_is_trained_here() -> None:
    trained = {type(case.model) for case in CASES.values()}
    made = {type(make(**({"vocabulary": 4} if name == "decoder_lm" else {}))) for name, make in MODELS.items()}
    assert trained == made


FIRST_DIGESTS = {
    "mlp": "ed7633fbb0be4dcb",
    "cnn": "fc9e5bfc74807f6f",
}


@pytest.mark.parametrize("name", FIRST_DIGESTS)
def test_first_weights_of_a_seed_stay_what_they_are(name: str) -> None:
    """A version is reproduced from its seed: other first numbers make another model of it."""
    weights = initial_weights(model_of(name), shape_of(name), seed=3)
    digest = hashlib.sha256()
    for key, value in weights.items():
        digest.update(key.encode() + value.tobytes())
    assert digest.hexdigest()[:16] == FIRST_DIGESTS[name]


def test_first_weights_have_the_spread_that_their_layout_says() -> None:
    weights = initial_weights(
        resnet(channels=(64, 128)), ModelShape(inputs=shape_of("resnet").inputs, outputs=5), seed=0
    )
    kernel = weights["stages.1.0.convolution1.weight"]
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (128 * 9)), rel=0.02)
    assert (weights["stem.norm.running_var"] == 1).all() and (weights["stem.norm.running_mean"] == 0).all()
    text = initial_weights(transformer_encoder(width=64, depth=8, vocabulary=500), shape_of("encoder-text"), seed=0)
    assert np.std(text["embedding.weight"]) == pytest.approx(0.02, rel=0.02)
    residual, inner = text["blocks.0.attention.output.weight"], text["blocks.0.attention.qkv.weight"]
    assert np.abs(residual).max() / np.abs(inner).max() == pytest.approx(1 / 4, rel=0.02)


# Weights go both ways.


@pytest.mark.parametrize("name", CASES)
def test_weights_go_to_the_other_backend_and_back_to_the_bit(name: str) -> None:
    import torch

    from noa_training.models.torch.build import build_torch

    module = build_torch(model_of(name), shape_of(name))
    state = module.state_dict()
    back = state_dict_from_tree(tree_from_state_dict(state))
    assert list(back) == list(state)
    module.load_state_dict({key: torch.from_numpy(value) for key, value in back.items()}, strict=True)
    for key, value in module.state_dict().items():
        assert value.dtype == state[key].dtype
        np.testing.assert_array_equal(value.numpy(), back[key])


NAMES = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=3)
LEAVES = arrays.arrays(
    st.sampled_from([np.float32, np.float16, np.int32, np.bool_, np.float64]),
    arrays.array_shapes(min_dims=0, max_dims=3, max_side=3),
)


@settings(max_examples=25)
@given(
    st.recursive(
        st.dictionaries(NAMES, LEAVES, min_size=1, max_size=3),
        lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=3),
    )
)
def test_a_tree_comes_back_from_its_flat_form(tree: dict[str, Any]) -> None:
    flat = state_dict_from_tree(tree)
    again = state_dict_from_tree(tree_from_state_dict(flat))
    assert list(again) == list(flat)
    for key, value in flat.items():
        assert again[key].dtype == value.dtype and again[key].tobytes() == value.tobytes()
        assert again[key].shape == value.shape


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b", "a"), ("a..b",), ("",)])
def test_names_that_make_no_tree_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInputError, match="make no tree"):
        tree_from_state_dict({name: np.zeros(1) for name in names})


def test_a_branch_with_a_dot_is_refused_for_it_could_not_come_back() -> None:
    with pytest.raises(RecipeError, match=r"`a\.b` holds a dot"):
        state_dict_from_tree({"c": {"a.b": np.zeros(1)}})


# Shapes in signatures.


def _shaped_functions() -> Iterator[tuple[ModuleType, str, Any]]:
    """Give the functions of the JAX modules, and the `forward` of each class of the torch modules."""
    for path in sorted(sys.modules):
        module = sys.modules[path]
        if path.startswith("noa_training.models.jax."):
            for name, value in list(vars(module).items()):
                if callable(value) and getattr(value, "__module__", "") == path and not isinstance(value, type):
                    yield module, name, value
        elif path.startswith("noa_training.models.torch."):
            for value in list(vars(module).values()):
                if isinstance(value, type) and value.__module__ == path:
                    yield cast("ModuleType", value), "forward", vars(value)["forward"]


def _checked(function: Any) -> Any:
    """Return the function with its annotations made real: they are text, and their names are for type checkers."""
    import jax
    import torch

    names = {**vars(jaxtyping), **vars(noa_training), "Array": jax.Array, "Tensor": torch.Tensor}
    names |= {"Activation": Activation, "Block": Block}
    hints = get_type_hints(function, localns={**names, **vars(sys.modules[function.__module__])}, include_extras=True)
    function.__annotations__ = hints
    return jaxtyping.jaxtyped(function, typechecker=beartype)


@pytest.mark.parametrize("name", CASES)
def test_each_layer_keeps_the_shapes_of_its_signature(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass of every model, in training and in evaluation, with jaxtyping's checks at each function's border."""
    import jax
    import torch

    from noa_training.models.jax.build import build_jax
    from noa_training.models.jax.layers import Pass
    from noa_training.models.torch.build import build_torch

    users = [module for path, module in sys.modules.items() if path.startswith("noa_training.models.jax.")]
    for owner, label, function in list(_shaped_functions()):
        monkeypatch.setattr(function, "__annotations__", dict(function.__annotations__))
        checked = _checked(function)
        monkeypatch.setattr(owner, label, checked)
        for user in users if label != "forward" else ():  # they hold the function by a name of their own
            if vars(user).get(label) is function:
                monkeypatch.setattr(user, label, checked)
    split = CASES[name].split
    inputs = [array[:3] for array in split.inputs.values()]
    weights = initial_weights(model_of(name), shape_of(name), seed=0)
    module = build_torch(model_of(name), shape_of(name))
    outputs = {tuple(module.train(mode)(*map(torch.from_numpy, inputs)).shape) for mode in (True, False)}
    apply = build_jax(model_of(name))
    for run in (Pass(key=jax.random.key(0)), Pass()):
        traced = jax.eval_shape(lambda *given, run=run: apply(*given, run=run), tree_from_state_dict(weights), *inputs)
        outputs.add(traced.shape)
    assert len(outputs) == 1


def test_a_wrong_shape_is_found_by_the_checks_of_signatures() -> None:
    """The test above proves something only if the checks refuse."""
    import jax
    import jax.numpy as jnp

    from noa_training.models.jax import attention

    original = dict(attention.key_bias.__annotations__)
    try:
        checked = _checked(attention.key_bias)
        jax.eval_shape(checked, jnp.ones((2, 3)))
        with pytest.raises(jaxtyping.TypeCheckError):
            jax.eval_shape(checked, jnp.ones((2, 3, 4)))
    finally:
        attention.key_bias.__annotations__ = original


# What a model cannot take.


def spec(*shape: int, dtype: str = "float32", name: str = "x") -> TensorSpec:
    return TensorSpec(name=name, dtype=cast("Any", dtype), shape=("batch", *shape))


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (cnn(), [spec(12)], "`cnn` takes images"),
        (resnet(), [spec(8, 8)], "`resnet` takes images"),
        (vit(), [spec(3, 8, 8), spec(3, 8, 8)], "`vit` takes images"),
        (vit(patch=3), [spec(3, 8, 9)], "`model.patch` does not divide"),
        (gru(), [spec(7)], "`gru` takes sequences"),
        (gru(vocabulary=9), [spec(7)], "with a `vocabulary` takes tokens"),
        (gru(vocabulary=9), [spec(7, 3, dtype="int32")], "with a `vocabulary` takes tokens"),
        (transformer_encoder(), [spec(7, dtype="int32")], "`transformer_encoder` takes sequences"),
        (transformer_encoder(), [spec(7, 3), spec(6, dtype="bool")], "one input more, a mask"),
        (transformer_encoder(), [spec(7, 3), spec(7)], "one input more, a mask"),
        (transformer_encoder(), [spec(7, 3), *[spec(7, dtype="bool")] * 2], "one input more, a mask"),
        (decoder_lm(vocabulary=9), [spec(7, dtype="int32"), spec(7, dtype="bool")], "takes tokens alone"),
        (mlp(hidden=(1 << 20, 1 << 20)), [spec(4)], "more parameters than can be trained"),
    ],
)
def test_inputs_of_another_kind_are_refused(model: BuiltIn, inputs: list[TensorSpec], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        layout_of(model, ModelShape(inputs=tuple(inputs), outputs=2))


def test_a_missing_vocabulary_is_named() -> None:
    with pytest.raises(RecipeError) as caught:
        layout_of(transformer_encoder(), ModelShape(inputs=(spec(7, dtype="int32"),), outputs=2))
    assert "vocabulary" in (caught.value.remedy or "")


@pytest.mark.parametrize("backend", mostly("conformance", BACKENDS, sample=("torch",)))
def test_padding_changes_nothing(backend: str) -> None:
    """What stands where the mask says padding has no influence, in the scores and in the mean."""
    mask = TEXT.inputs["mask"]
    other = np.where(mask, TEXT.inputs["tokens"], (TEXT.inputs["tokens"] + 1) % VOCABULARY).astype(np.int32)
    changed = {**TEXT.inputs, "tokens": other}
    trainer = trainer_of(backend, "encoder-text")
    np.testing.assert_allclose(
        trainer.predict(TEXT),
        trainer.predict(type(TEXT)(inputs=changed, targets=TEXT.targets)),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("backend", mostly("conformance", BACKENDS, sample=("torch",)))
def test_a_row_of_padding_alone_gives_numbers(backend: str) -> None:
    empty = {**TEXT.inputs, "mask": np.zeros_like(TEXT.inputs["mask"])}
    outputs = trainer_of(backend, "encoder-text").predict(type(TEXT)(inputs=empty, targets=TEXT.targets))
    assert np.isfinite(outputs).all()


@pytest.mark.parametrize("backend", mostly("conformance", BACKENDS, sample=("jax",)))
def test_a_language_model_does_not_look_ahead(backend: str) -> None:
    tokens = CASES["decoder"].split.inputs["tokens"]
    changed = tokens.copy()
    changed[:, 4:] = (changed[:, 4:] + 1) % VOCABULARY
    trainer = trainer_of(backend, "decoder")
    first, second = (
        trainer.predict(type(TEXT)(inputs={"tokens": value}, targets=TEXT.targets)) for value in (tokens, changed)
    )
    assert first.shape == (len(tokens), LENGTH, VOCABULARY)
    np.testing.assert_allclose(first[:, :4], second[:, :4], rtol=1e-5, atol=1e-7)
    assert np.abs(first[:, 4:] - second[:, 4:]).max() > 1e-4


@pytest.mark.parametrize("backend", mostly("conformance", BACKENDS, sample=("torch",)))
def test_attention_of_a_language_model_turns_with_the_distance(backend: str) -> None:
    """Without positions the last step of a permuted prefix would be the same."""
    tokens = CASES["decoder"].split.inputs["tokens"]
    permuted = tokens.copy()
    permuted[:, :3] = permuted[:, [2, 0, 1]]
    trainer = trainer_of(backend, "decoder")
    first, second = (
        trainer.predict(type(TEXT)(inputs={"tokens": value}, targets=TEXT.targets)) for value in (tokens, permuted)
    )
    assert np.abs(first[:, -1] - second[:, -1]).max() > 1e-6


def test_a_model_of_a_torch_library_takes_the_recurrent_weights_as_they_are() -> None:
    """Names, order of gates and biases are PyTorch's own: the layer computes what `torch.nn.LSTM` does."""
    import torch

    weights = initial_weights(model_of("lstm"), shape_of("lstm"), seed=1)
    lstm = torch.nn.LSTM(3, 8, num_layers=2, batch_first=True)
    prefix = "recurrent."
    lstm.load_state_dict(
        {key.removeprefix(prefix): torch.from_numpy(value) for key, value in weights.items() if key.startswith(prefix)}
    )
    values = CASES["lstm"].split.inputs["values"]
    with torch.no_grad():
        last = lstm(torch.from_numpy(values))[0][:, -1].numpy()
    expected = last @ weights["output.weight"].T + weights["output.bias"]
    for backend in BACKENDS:
        np.testing.assert_allclose(
            trainer_of(backend, "lstm", seed=1).predict(CASES["lstm"].split), expected, rtol=1e-5, atol=1e-6
        )


def test_tabular_resnet_takes_any_inputs_as_one_table() -> None:
    layout = layout_of(tabular_resnet(width=4), ModelShape(inputs=(spec(2, 3), spec(5, dtype="int8")), outputs=2))
    assert layout[0].shape == (4, 11)
