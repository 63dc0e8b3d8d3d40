"""What may be a secret is masked, and code stays readable."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies

from noa.database_urls import MASK
from noa_training.secret_masking import LineMasker, mask_value, own_secrets

# Made up, in the shape of real ones; put together here so that no scanner of repositories takes them for real.
AWS = "AKIA" + "IOSFODNN7EXAMPLE"
GITHUB = "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789"
JWT = "eyJ" + "hbGciOiJIUzI1NiJ9" + "." + "eyJzdWIiOiIxMjM0In0" + ".c2lnbmF0dXJl"
RANDOM = "kJ8s+Qz1/Vb7Xw3Nf5Rt9Yp2Lm4Gh6Dc0"


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ('password = "hunter2"', "hunter2"),
        ("DB_PASSWORD: str = 'hunter2'", "hunter2"),
        ('connect(user="ada", passwd="hunter2")', "hunter2"),
        ('"api_key": "hunter2",', "hunter2"),
        ('headers = {"Authorization": "Basic aHVudGVyMg=="}', "aHVudGVyMg"),
        ('token = os.environ.get("X", "hunter2")', "hunter2"),
        ('secret = f"hunter2-{x}"', "hunter2"),
        ('client_secret = """hunter2', "hunter2"),
        ("url = 'postgresql://ada:hunter2@db/x'", "hunter2"),
        ('"https://ada:hun/ter2@host/x"', "hun/ter2"),
        ('"https://store/x?sig=hunter2&y=1"', "hunter2"),
        (f"key_id = '{AWS}'", AWS),
        (f"x = '{GITHUB}'", GITHUB),
        (f"jwt = '{JWT}'", JWT),
        (f"x = '{RANDOM}'", RANDOM),
        ("auth(Bearer = 'x', 'abc')", "abc"),
    ],
)
def test_a_secret_in_code_is_masked(line: str, secret: str) -> None:
    masked = LineMasker(is_code=True).mask(line)
    assert secret not in masked
    assert MASK in masked


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("password = hunter2", "hunter2"),
        ("AWS_SECRET_ACCESS_KEY=hunter2", "hunter2"),
        ("  token: hunter2", "hunter2"),
        ("machine_secret: hunter2 # mine", "hunter2"),
    ],
)
def test_a_secret_in_settings_is_masked_without_quotes_too(line: str, secret: str) -> None:
    assert secret not in LineMasker(is_code=False).mask(line)


@pytest.mark.parametrize(
    "line",
    [
        "tokens = tokenizer.encode(text)",
        "learning_rate = 3e-4  # from the paper",
        'name = "digits"',
        "def rotary_embed(x, theta: float = 10_000.0):",
        "digest = 'sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08'",
        "from noa_training import AdamW, TransformerEncoderLayer2d",
        'model = cnn(channels=(4, 8), hidden=16, dropout=0.2)  # "small"',
        "password = getpass()",
        "https://example.org/docs?page=2",
    ],
)
def test_code_without_secrets_stays_as_it_is(line: str) -> None:
    assert LineMasker(is_code=True).mask(line) == line


def test_a_private_key_and_what_follows_an_open_bracket_take_several_lines() -> None:
    masker = LineMasker(is_code=True)
    lines = ["a = 1", "-----BEGIN RSA PRIVATE KEY-----", "MIIEow", "abc", "-----END RSA PRIVATE KEY-----", "b = 2"]
    assert [masker.mask(line) for line in lines] == ["a = 1", MASK, MASK, MASK, MASK, "b = 2"]
    masker = LineMasker(is_code=True)
    lines = ["password = (", '    "hunter2"', ")", "", "", 'name = "digits"']
    masked = [masker.mask(line) for line in lines]
    assert "hunter2" not in "".join(masked)
    assert masked[-1] == 'name = "digits"'


def test_the_values_of_secret_variables_are_masked_wherever_they_stand() -> None:
    environ = {"NOA_DB_PASSWORD": "correct-horse", "MY_KEY": "battery-staple", "PWD": "/home/ada", "HOME": "/home/ada"}
    secrets = own_secrets(environ | {"SHORT_TOKEN": "abc"})
    assert set(secrets) == {"correct-horse", "battery-staple"}
    assert LineMasker(is_code=True, secrets=secrets).mask("x = [correct-horse]") == f"x = [{MASK}]"
    assert mask_value("a battery-staple", secrets=secrets) == f"a {MASK}"
    assert mask_value("sqlite:///a.db") == "sqlite:///a.db"


@given(
    strategies.lists(strategies.text(alphabet="ab \"'=:(){}[]\\-#\t,", max_size=60), max_size=8), strategies.booleans()
)
def test_any_lines_end_in_lines(lines: list[str], is_code: bool) -> None:
    masker = LineMasker(is_code=is_code)
    assert all("\n" not in masker.mask(f"secret {line}") for line in lines)
