"""Strings that stop a text: cut before the first, in every way of writing, and no pass too many."""

from collections import deque

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_lm import UNIFORM, tiny_lm

from sfumato.decoding.filters import Forced, Suppress
from sfumato.decoding.options import GenerationOptions
from sfumato.errors import ConfigError

TEXT = "a caf\u00e9, a \u2603 and\na fox met \u00f1 bear"
WRITERS = {
    "whole": tiny_lm,
    "packed": lambda: tiny_lm(layout="packed"),
    "uniform": lambda: tiny_lm(UNIFORM),
    "blocks": lambda: tiny_lm(attention="block_causal", block_size=4),
    "next_token": lambda: tiny_lm(objective="next_token"),
}


STOPS = ("\n", "\u2603", "caf\u00e9", ("bear", "fox m"), ("\u00f1", "met"), "a")


@pytest.fixture(scope="module")
def writers():
    return {name: make() for name, make in WRITERS.items()}


def forced(lm, text: str, **options):
    """What a model writes that has to write this."""
    (ids,) = lm.encode([text])
    request = lm.start("", length=len(ids), **options)
    (row,) = request.rows
    start = row[-1].start
    return lm.generate(
        "", length=len(ids), filters=(Forced(tuple(enumerate(ids, start))),), **options
    )


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("stop", STOPS)
def test_a_text_is_cut_before_the_first_stop(writers, name, stop):
    """Which may span tokens, blocks and the bytes of a character."""
    lm = writers[name]
    assert forced(lm, TEXT).text == TEXT
    made = forced(lm, TEXT, stop=stop)
    stops = (stop,) if isinstance(stop, str) else stop
    assert made.texts == (TEXT[: min(TEXT.find(each) for each in stops)],)
    assert made.finish_reasons == ("stop",)
    assert made.options.stop == stops
    assert made.as_dict()["options"]["stop"] == stops
    assert lm.reader.decode(list(made.tokens[0])).startswith(made.texts[0])
    if made.tokens[0]:
        assert not lm.reader.decode(list(made.tokens[0][:-1])).startswith(made.texts[0])


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_whatever_is_written_a_stop_only_cuts_it(writers, data):
    """Rows of a batch too, each at its own place, with rules that take decisions back."""
    lm = writers[data.draw(st.sampled_from(sorted(WRITERS)))]
    steps = ["ancestral", "confidence", "remask_cap", "wino", "left_to_right"]
    options = {"seed": data.draw(st.integers(0, 9)), "length": 12}
    if lm.corruption.absorbing and not lm.autoregressive:
        options["step"] = data.draw(st.sampled_from(steps))
        if not lm.block_size:
            options["block"] = data.draw(st.sampled_from([None, 5]))
    prompts = data.draw(st.sampled_from([["The fox"], ["The", "A caf\u00e9 had a ", ""]]))
    plain = lm.generate(prompts, **options)
    row = data.draw(st.integers(0, len(prompts) - 1))
    text = plain.texts[row] or "x"
    first = data.draw(st.integers(0, len(text) - 1))
    stop = text[first : first + data.draw(st.integers(1, 6))]
    cut = lm.generate(prompts, stop=(stop, "never written"), **options)
    for whole, part, reason in zip(plain.texts, cut.texts, cut.finish_reasons, strict=True):
        assert part == whole.partition(stop)[0]
        assert (reason == "stop") == (stop in whole)
    assert cut.num_steps <= plain.num_steps


@pytest.mark.parametrize("name", ["blocks", "next_token"])
def test_writing_stops_as_soon_as_no_row_needs_more(writers, name):
    lm = writers[name]
    assert forced(lm, TEXT, num_steps=None).num_steps > forced(lm, TEXT, stop="caf").num_steps
    ends = Suppress(tuple(lm.reader.ends))
    long = lm.generate(["The", "A"], length=40, seed=1, filters=(ends,))
    early = {row: text[4:7] for row, text in enumerate(long.texts)}
    both = lm.generate(["The", "A"], length=40, seed=1, stop=tuple(early.values()), filters=(ends,))
    assert both.num_steps < long.num_steps / 2
    one = lm.generate(["The", "A"], length=40, seed=1, stop=early[0], filters=(ends,))
    if early[0] not in long.texts[1]:
        assert one.num_steps == long.num_steps  # the other row goes on


def test_pages_show_no_more_than_the_text(writers):
    lm = writers["blocks"]
    pages = list(lm.stream("The", length=24, seed=3))
    text = lm.finish(pages[-1]).texts[0]
    stopped = deque(lm.stream("The", length=24, seed=3, stop=text[6:8]), maxlen=1)[0]
    assert lm.show(stopped) == "The" + text.partition(text[6:8])[0]
    pieces = list(lm.reader.pieces(stopped, 0, by_step=True))
    assert "".join(piece.text for piece in pieces) == lm.show(stopped)


def test_a_stop_at_once_leaves_nothing(writers):
    made = forced(writers["blocks"], TEXT, stop="a c")
    assert made.texts == ("",)
    assert made.tokens == ((),)
    assert made.finish_reasons == ("stop",)


def test_a_stop_in_the_prompt_stops_nothing(writers):
    lm = writers["whole"]
    options = {"length": 6, "seed": 1}
    plain = lm.generate("The fox\n", **options)
    if "\n" not in plain.texts[0]:
        assert lm.generate("The fox\n", stop="\n", **options).texts == plain.texts


@pytest.mark.parametrize("stop", ["", ("",), (), 3, b"a", ("a", None)])
def test_what_cannot_stop_a_text(stop):
    if stop == ():
        assert GenerationOptions(stop=stop).stop == ()
        return
    with pytest.raises(ConfigError, match="stop must be a string of at least one character, or s"):
        GenerationOptions(stop=stop)


def test_gaps_and_grammars_know_where_they_end(writers):
    with pytest.raises(ConfigError, match="infilling has no stop: use gap_length"):
        writers["whole"].infill("A ____.", stop="a")
    with pytest.raises(ConfigError, match="ends where the grammar does; leave stop out"):
        GenerationOptions(stop="a", choices=("a", "b"))


def test_a_taught_model_stops_where_it_is_told(taught_lm):
    made = taught_lm.generate("The fox", step="margin", temperature=0, stop=" grey", seed=0)
    assert made.text == "The fox met a big"
