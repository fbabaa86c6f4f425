"""Requests within a grammar that cannot be met are refused before they start."""

import pytest
from tiny_lm import tiny_lm

from sfumato.data.token_bytes import token_bytes
from sfumato.errors import ConfigError


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"choices": []}, "no choices; give at least one text"),
        ({"choices": "yes"}, "choices must be a tuple or a list, got 'yes'"),
        ({"choices": ["a"], "regex": "a"}, "exclude each other; give one of them"),
        ({"regex": "("}, r"cannot use the regular expression '\('"),
        ({"regex": r"(a)\1"}, "back references.*are not regular"),
        ({"regex": "a(?=b)"}, "look-around"),
        ({"regex": r"a[^\x00-\x{10FFFF}]"}, "no text matches the regular expression"),
        ({"regex": "x" * 30, "length": 10}, "has 30 tokens, and there is room for 10: use a len"),
        ({"regex": "a" * 30}, "has 30 tokens, and there is room for 23"),
        ({"regex": "q+", "suppress": (81, 84)}, "suppress fewer tokens"),
        ({"json_schema": "{"}, "the JSON schema.*not JSON"),
        ({"json_schema": {"type": "strin"}}, r"at #: unknown type \['strin'\]; known: string"),
        ({"regex": "a{9000}", "grammar_states": 500}, "needs more than 500 states; bound what"),
        ({"json_schema": []}, "json_schema must be a JSON schema"),
        ({"json_schema": {"not": {}}}, "no value fits it"),
        ({"json_schema": {"type": "object"}}, "no properties; say what the object holds"),
        ({"json_schema": {"type": "string", "format": "x"}}, "unknown format 'x'; known: date"),
        ({"json_schema": {"$ref": "#/a"}}, "leads nowhere; there is no 'a'"),
        ({"json_schema": {"$ref": "#"}}, "refers to itself without end"),
        ({"json_schema": {"type": "string", "minLength": -1}}, "minLength must be a whole number"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_before_it_starts(lm, request_, message):
    if "suppress" in request_:
        letters = [i for i, word in enumerate(words(lm)) if word and b"q" in word]
        request_ = {**request_, "suppress": tuple(letters)}
    with pytest.raises(ConfigError, match=message):
        lm.start("", **request_)


def test_a_gap_that_cannot_be_filled_exactly_is_refused(lm):
    with pytest.raises(ConfigError, match=r"exactly 4 tokens.* gap; use gap_length=3"):
        lm.infill("a____ b", regex="(...)*[Q]{3}|Q{9}", gap_length=4, suppress=not_letters(lm))
    with pytest.raises(ConfigError, match=r"has 3 tokens.*room for 2: use a length, or"):
        lm.infill("a____ b", choices=["QQQ"], gap_length=2)


def words(lm):
    return token_bytes(lm.tokenizer, lm.model.config.vocab_size)


def not_letters(lm) -> tuple[int, ...]:
    """All tokens but those of one letter."""
    return tuple(i for i, word in enumerate(words(lm)) if word is None or len(word) > 1)
