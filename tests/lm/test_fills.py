"""The likeliest fills of gaps: against enumerated laws, and of a model over all its tokens."""

import json
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from test_conditions import conditional
from test_gaps import CASES, CORRUPTION, END, HIDDEN, LAWS, LENGTH, PAD, judged
from tiny_lm import tiny_lm
from typer.testing import CliRunner

from sfumato.cli import app
from sfumato.decoding.filters import Suppress
from sfumato.errors import ConfigError
from sfumato.lm import fills as fills_module
from sfumato.lm.candidates import fill_log_probs
from sfumato.lm.fills import Filling, Layout, best_fills
from sfumato.lm.gaps import law_at
from sfumato.lm.pages import Page
from sfumato.rng import Rng

NEVER = Suppress((END, PAD, HIDDEN))
TEXT = "The ____ met a bear."


def filling(given, possible) -> Filling:
    """Of the law with padding: every choice of lengths, and their posterior."""
    law = LAWS["padding"]
    ways = judged(law, given, possible, kept=99)
    layouts = []
    for lengths, nats in zip(ways.lengths, ways.nats.log_softmax(0).tolist(), strict=True):
        row = list(given[0])
        for length, part in zip(lengths, given[1:], strict=True):
            row += [*[-1] * length, *part]
        row += [PAD] * (LENGTH - len(row))
        places = tuple(n for n, token in enumerate(row) if token < 0)
        layouts.append(Layout(torch.tensor(row), places, torch.zeros(LENGTH) > 0, nats))
    space = torch.zeros(5, dtype=torch.bool)
    return Filling(tuple(layouts), lambda rows: law, CORRUPTION, (NEVER,), space)


def exact(asked: Filling) -> list[tuple[float, tuple[int, tuple[int, ...]]]]:
    """Every fill by the law itself, the likeliest first."""
    law, found = LAWS["padding"], []
    for number, layout in enumerate(asked.layouts):
        for tokens in product((0, 1), repeat=len(layout.places)):
            row = layout.tokens.clone()
            row[list(layout.places)] = torch.tensor(tokens)
            found.append((law.chances[(law.texts == row).all(1)].sum(), (number, tokens)))
    total = sum(chance for chance, _ in found)
    return sorted(((float((c / total).log()), fill) for c, fill in found), reverse=True)


def spelled(fills):
    return [(fill.layout, fill.tokens) for fill in fills]


@pytest.mark.parametrize("count", [1, 4, 99])
@pytest.mark.parametrize(("given", "possible"), CASES, ids=str)
def test_they_are_the_best_of_all_by_the_law_itself(given, possible, count):
    asked = filling(given, possible)
    best, all_of_them = best_fills(asked, count, spelled, Rng.from_seed(0))
    ranked = exact(asked)
    assert all_of_them
    nats = [fill.nats for fill in best]
    assert nats == pytest.approx([value for value, _ in ranked[:count]], abs=1e-9)
    known = {fill: value for value, fill in ranked}
    assert nats == pytest.approx([known[each] for each in spelled(best)], abs=1e-9)
    assert len({*spelled(best)}) == min(count, len(ranked))


@dataclass(frozen=True)
class Rounded:
    """The law, with sums that come out a little otherwise in batches of another size."""

    law: Any

    def __call__(self, tokens, t, where=None, **more):
        return self.law(tokens, t, where, **more) * (1 + 1e-6 * (1 + len(tokens) % 7))


@pytest.mark.parametrize("count", range(1, 9))
def test_no_fill_is_lost_to_rounding(count):
    asked = filling([[], [END]], [(3, 4, 5)])
    best, all_of_them = best_fills(asked, count, spelled, Rng.from_seed(0))
    rounded = replace(asked, reading=lambda rows: Rounded(LAWS["padding"]))
    assert best_fills(rounded, 99, spelled, Rng.from_seed(0))[1]
    found, all_of_these = best_fills(rounded, count, spelled, Rng.from_seed(0))
    assert spelled(found) == spelled(best)
    assert all_of_them
    assert all_of_these


def test_of_several_ways_to_spell_a_fill_the_likeliest_counts():
    asked = filling([[], [END]], [(1, 2, 3)])
    best, _ = best_fills(
        asked, 2, lambda fills: [sum(fill.tokens) > 0 for fill in fills], Rng.from_seed(0)
    )
    ranked = exact(asked)
    wanted = [next(f for _, f in ranked if (sum(f[1]) > 0) == kind) for kind in (True, False)]
    assert {*spelled(best)} == {*wanted}
    assert spelled(best)[0] == ranked[0][1]


def test_where_there_are_too_many_the_best_of_draws_are_given_and_said_to_be(monkeypatch):
    monkeypatch.setattr(fills_module, "MOST", 3)
    asked = filling([[], [END]], [(3, 4, 5)])
    best, all_of_them = best_fills(asked, 4, spelled, Rng.from_seed(0))
    assert not all_of_them
    known = {fill: nats for nats, fill in exact(asked)}
    assert len({*spelled(best)}) == 4
    for fill, each in zip(best, spelled(best), strict=True):
        assert fill.nats == pytest.approx(known[each])
    assert spelled(best)[0] == exact(asked)[0][1]


# --- of a model ---


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


def test_candidates_of_one_token_are_the_best_of_the_vocabulary(lm):
    made = lm.infill(TEXT, gap_length=1, candidates=5)
    assert set(made.searched) == {"all"}
    assert made.log_probs == tuple(sorted(made.log_probs, reverse=True))
    assert len({*made.fills}) == 5
    request = lm.start_infill(TEXT, gap_length=1)
    shown, here = request.canvas.fixed, request.canvas.noisy
    logp = law_at(lm.denoiser, lm.corruption, request.canvas.tokens, shown, here, request.filters)[
        0
    ]
    best = logp.topk(9)
    wanted = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    for (token,), nats, full, (fill,) in zip(
        made.tokens, made.log_probs, made.full_texts, made.fills, strict=True
    ):
        assert nats == pytest.approx(wanted[token], abs=1e-6)
        assert full == f"The{fill} met a bear."


def test_candidates_of_several_texts_and_lengths_add_up_to_at_most_one(lm):
    texts = [TEXT, "A ____", "____ a ____ b"]
    made = lm.infill(texts, gap_length=(1, 2), candidates=3, seed=0)
    assert len(made.fills) == len(made.log_probs) == len(made.searched) == 9
    for row in range(0, 9, 3):
        nats = made.log_probs[row : row + 3]
        assert nats == tuple(sorted(nats, reverse=True))
        assert sum(torch.tensor(nats).exp()) < 1
        alone = lm.infill(texts[row // 3], gap_length=(1, 2), candidates=3, seed=0)
        assert alone.fills == made.fills[row : row + 3]
    assert not any(set(tokens) & set(lm.special.all) for tokens in made.tokens)
    assert made.as_dict()["log_probs"] == made.log_probs


def test_what_was_written_has_the_log_probability_that_it_has_as_a_candidate(lm):
    best = lm.infill(TEXT, gap_length=1, candidates=300)
    assert set(best.searched) == {"all"}
    known = dict(zip(best.tokens, best.log_probs, strict=True))
    made = lm.infill(TEXT, gap_length=1, num_samples=6, seed=1, log_probs=True)
    assert len(set(made.tokens)) > 1
    found = [known[tokens] for tokens in made.tokens if tokens in known]
    assert len(found) >= 3
    told = dict(zip(made.tokens, made.log_probs, strict=True))
    assert [told[tokens] for tokens in made.tokens if tokens in known] == pytest.approx(found)
    assert lm.infill(TEXT, gap_length=1, seed=1).log_probs == ()


def test_log_probabilities_of_what_was_written_add_up_token_by_token(lm):
    texts = ["The ____ met a ____.", "A ____ b"]
    made = lm.infill(texts, gap_length=2, seed=3, log_probs=True)
    for row, text in enumerate(texts):
        alone = lm.infill(text, gap_length=2, seed=3, log_probs=True) if row == 0 else None
        assert alone is None or alone.log_probs[0] == pytest.approx(made.log_probs[0])
        request = lm.start_infill(text, gap_length=2)
        tokens, shown, nats = request.canvas.tokens, request.canvas.fixed, 0.0
        for place, token in zip(
            (~shown[0]).nonzero()[:, 0].tolist(), made.tokens[row], strict=True
        ):
            here = torch.zeros_like(shown)
            here[0, place] = True
            law = law_at(lm.denoiser, lm.corruption, tokens, shown, here, request.filters)
            nats += law[0, token].item()
            tokens, shown = tokens.clone(), shown | here
            tokens[0, place] = token
        assert made.log_probs[row] == pytest.approx(nats, abs=1e-5)


def test_the_source_of_a_fill_has_a_say_in_its_log_probability():
    lm = conditional().lm
    known = []
    for source in ("A red ball.", "The cat sat."):
        best = lm.infill(TEXT, source=source, gap_length=1, candidates=4)
        made = lm.infill(TEXT, source=source, gap_length=1, seed=1, num_samples=9, log_probs=True)
        told = dict(zip(made.tokens, made.log_probs, strict=True))
        both = set(told) & set(best.tokens)
        assert both
        for tokens, nats in zip(best.tokens, best.log_probs, strict=True):
            assert tokens not in both or told[tokens] == pytest.approx(nats, abs=1e-5)
        known.append(best.log_probs)
    assert known[0] != known[1]


def test_a_page_with_noise_has_no_log_probability_yet(lm):
    request = lm.start_infill(TEXT, gap_length=2)
    with pytest.raises(ConfigError, match="finished pages"):
        fill_log_probs(lm, Page.blank(request))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": 0}, "candidates must be at least 1, got 0"),
        ({"candidates": 2, "temperature": 0.5}, "in which temperature has no say; leave it out"),
        ({"candidates": 2, "step": "margin"}, "in which step has no say"),
        ({"candidates": 2, "regex": "a"}, "in which regex has no say"),
    ],
)
def test_what_has_no_say_is_refused(lm, changes, message):
    with pytest.raises(ConfigError, match=message):
        lm.infill(TEXT, gap_length=1, **changes)


def test_the_command_line_prints_them_with_their_log_probability(lm, tmp_path):
    lm.save(tmp_path)
    words = ["generate", "--infill", TEXT, "--gap-length", "1", "--model", str(tmp_path)]
    made = lm.infill(TEXT, gap_length=1, candidates=3)
    done = CliRunner().invoke(app, [*words, "--candidates", "3"])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stdout.splitlines() if "met a bear" in line]
    assert [line[10:] for line in lines] == [*made.full_texts]
    assert float(lines[0][:8]) == pytest.approx(made.log_probs[0], abs=2e-3)
    told = json.loads(CliRunner().invoke(app, [*words, "--candidates", "3", "--json"]).stdout)
    assert told["searched"] == ["all"] * 3
    done = CliRunner().invoke(app, ["generate", "A", "--candidates", "3"])
    assert done.exit_code != 0


def test_the_command_line_tells_the_log_probability_of_what_it_wrote(lm, tmp_path):
    lm.save(tmp_path)
    words = ["generate", "--infill", TEXT, "--gap-length", "1", "--model", str(tmp_path)]
    made = lm.infill(TEXT, gap_length=1, seed=1, log_probs=True)
    done = CliRunner().invoke(app, [*words, "--seed", "1", "--log-probs"])
    assert f"given their lengths: {made.log_probs[0]:.3f}" in done.stderr
    told = json.loads(
        CliRunner().invoke(app, [*words, "--seed", "1", "--log-probs", "--json"]).stdout
    )
    assert told["log_probs"] == pytest.approx(made.log_probs)
    with pytest.raises(ConfigError, match="--log-probs is for --infill"):
        CliRunner().invoke(app, ["generate", "a", "--log-probs"], catch_exceptions=False)
