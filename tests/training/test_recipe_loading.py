from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from noa.errors import NotFoundError, RecipeError
from noa_training import load_recipe
from noa_training.loading import find_recipe

HEADER = "from noa_training import Recipe, mlp\n\ndef data():\n    raise SystemExit\n\n"


def recipe_text(variable: str, **fields: str) -> str:
    values = {"name": f'"{variable}"', "data": "data", "model": "mlp()", "objective": '"mse"'} | fields
    return f"{variable} = Recipe(\n" + "".join(f"    {key}={value},\n" for key, value in values.items()) + ")\n"


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    """Give back `sys.path` and forget the user's modules."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("training", "registry", "helpers") or name.startswith("noa_recipe_"):
            del sys.modules[name]


def test_the_only_recipe_of_a_file_needs_no_name(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(HEADER + recipe_text("digits"))
    assert load_recipe("recipe.py", root=tmp_path).name == "digits"


def test_a_file_is_read_anew_each_time_and_two_projects_do_not_mix(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "recipe.py").write_text(HEADER + recipe_text(folder))
    assert load_recipe("recipe.py", root=tmp_path / "a").name == "a"
    assert load_recipe("recipe.py", root=tmp_path / "b").name == "b"
    (tmp_path / "a" / "recipe.py").write_text(HEADER + recipe_text("changed"))
    assert load_recipe("recipe.py", root=tmp_path / "a").name == "changed"


def test_several_recipes_need_a_name_and_are_listed(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(HEADER + recipe_text("small") + recipe_text("large"))
    assert load_recipe("recipe.py:large", root=tmp_path).name == "large"
    with pytest.raises(RecipeError, match="several") as several:
        load_recipe("recipe.py", root=tmp_path)
    assert several.value.received == "`small`, `large`"
    with pytest.raises(NotFoundError, match="no recipe `huge`") as missing:
        load_recipe("recipe.py:huge", root=tmp_path)
    assert missing.value.expected == "`small`, `large`"


def test_the_users_own_packages_are_found_first_whatever_they_are_called(tmp_path: Path) -> None:
    for folder in ("training", "registry"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "registry" / "names.py").write_text('NAME = "theirs"\n')
    text = "from registry.names import NAME\n" + HEADER + recipe_text("model", name="NAME")
    (tmp_path / "training" / "recipes.py").write_text(text)
    assert load_recipe("training.recipes:model", root=tmp_path).name == "theirs"
    assert load_recipe("training/recipes.py", root=tmp_path).name == "theirs"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("x = 1\ndef broken(:\n", 2, "SyntaxError"),
        ("import os\n\nimport no_such_package\n", 3, "no_such_package"),
        (HEADER + 'r = Recipe(name="a", epoch=3)\n', 6, "epoch"),
        ("def f():\n    return 1 / 0\n\nf()\n", 2, "ZeroDivisionError"),
        ("import sys\n\nsys.exit(0)\n", 3, "SystemExit"),
    ],
)
def test_an_error_in_the_users_file_is_named_with_its_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    (tmp_path / "recipe.py").write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe("recipe.py", root=tmp_path)
    assert caught.value.where == f"{tmp_path / 'recipe.py'}:{line}"


def test_a_refused_field_is_named_with_the_line_where_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(HEADER + recipe_text("model", epochs="0"))
    with pytest.raises(RecipeError, match="`epochs`") as caught:
        load_recipe("recipe.py", root=tmp_path)
    assert caught.value.where == f"{tmp_path / 'recipe.py'}:11"


@pytest.mark.parametrize("path", ["nowhere.py", "no.such.module:x", "no_such_module", "a..b:c", ":x"])
def test_what_does_not_exist_is_not_found(tmp_path: Path, path: str) -> None:
    with pytest.raises(NotFoundError):
        load_recipe(path, root=tmp_path)


def test_a_file_without_recipes_says_so(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text("x = 1\n")
    with pytest.raises(NotFoundError, match="no recipe in"):
        load_recipe("recipe.py", root=tmp_path)


def test_the_digest_names_the_source(tmp_path: Path) -> None:
    file = tmp_path / "recipe.py"
    file.write_text(HEADER + recipe_text("model"))
    first = find_recipe("recipe.py", root=tmp_path)
    file.write_text(HEADER + recipe_text("model") + "# changed\n")
    assert find_recipe("recipe.py", root=tmp_path).source_digest != first.source_digest
    assert first.where == f"{file}:6"
