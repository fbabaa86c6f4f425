import random
from dataclasses import replace

import pytest
import torch
from tiny_lm import tiny_lm
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sfumato.lm.pages import NOISE, REASONS, Page, PageReader, left_padded, template
from sfumato.types import Canvas


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


def page_of(lm, prompt: str, ids: list[int], steps: list[int]) -> Page:
    """A page that says `ids` after a prompt, decided at `steps`; -1 is noise."""
    request = lm.start(prompt, length=len(ids), seed=0)
    canvas = replace(request.canvas, tokens=torch.tensor([ids]), noisy=torch.tensor([steps]) < 0)
    return Page(request, max(steps), canvas, torch.tensor([steps]))


def test_noise_is_shown_as_shade(lm):
    ids = lm.encode([" a fox"])[0]
    assert lm.show(page_of(lm, "I am", ids, [-1] * len(ids))) == "I am" + NOISE * len(ids)
    assert lm.show(page_of(lm, "I am", ids, [1] * len(ids))) == "I am a fox"
    assert lm.reader.show(page_of(lm, "", ids, [-1, *[1] * (len(ids) - 1)]), noise="?")[0] == "?"


def test_a_row_is_cut_where_its_text_ends(lm):
    ids = [*lm.encode([" fox"])[0], lm.special.eos, *lm.encode([" not this"])[0]]
    page = page_of(lm, "A", ids, [1] * len(ids))
    assert lm.show(page) == "A fox"
    (generated,) = [piece for piece in lm.reader.pieces(page, 0) if piece.step > 0]
    assert generated.tokens == tuple(lm.encode([" fox"])[0])
    ended = page_of(lm, "A", [lm.special.pad, *ids], [1] * (len(ids) + 1))
    assert lm.show(ended) == "A"
    assert list(lm.reader.pieces(ended, 0, by_step=True))[1:] == []


def test_pieces_are_apart_where_another_step_decided(lm):
    ids = lm.encode(["The fox met"])[0]
    steps = [2, *[1] * (len(ids) - 1)]
    pieces = list(lm.reader.pieces(page_of(lm, "", ids, steps), 0, by_step=True))
    assert [piece.step for piece in pieces] == [0, 2, 1]
    assert "".join(piece.text for piece in pieces) == "The fox met"
    assert pieces[1].tokens + pieces[2].tokens == tuple(ids)


def test_a_character_that_two_steps_wrote_is_whole(lm):
    ids = lm.encode(["a \u00f1 b"])[0]
    assert any(lm.reader.decode([i]) == "\ufffd" for i in ids), "its bytes are tokens"
    for turn in range(len(ids)):
        steps = [1 + (turn + place) % 3 for place in range(len(ids))]
        pieces = list(lm.reader.pieces(page_of(lm, "", ids, steps), 0, by_step=True))
        assert "".join(piece.text for piece in pieces) == "a \u00f1 b"
        assert all("\ufffd" not in piece.text for piece in pieces)
        assert [i for piece in pieces for i in piece.tokens] == ids


def test_bytes_that_are_no_character_do_not_touch_the_prompt(lm):
    lone = lm.encode(["\u00f1"])[0][-1:]
    assert lm.show(page_of(lm, "caf\u00e9 \u2603", lone, [1])) == "caf\u00e9 \u2603\ufffd"


def test_words_of_a_tokenizer_that_spaces_them_are_spaced_after_the_prompt():
    vocab = {"[PAD]": 0, "[SEP]": 1, "[MASK]": 2, "hello": 3, "big": 4, "##ger": 5, "world": 6}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[PAD]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    roles = {"pad_token": "[PAD]", "eos_token": "[SEP]", "mask_token": "[MASK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
    lm = tiny_lm()
    request = replace(
        lm.start("hello", length=3, seed=0),
        left=torch.tensor([[3]]),
        rows=(("Hello", slice(0, 3)),),  # as the user spelt it
    )
    canvas = replace(request.canvas, tokens=torch.tensor([[4, 5, 6]]))
    page = Page(request, 1, canvas, torch.tensor([[1, 2, 3]]))
    reader = PageReader(tokenizer, frozenset({0, 1}))
    assert reader.show(page) == "Hello bigger world"
    apart = [piece.text for piece in reader.pieces(page, 0, by_step=True)]
    assert apart == ["Hello", " big", "ger", " world"]


def test_a_template_has_the_given_tokens_in_front():
    tokens, given = template([[5, 6], []], 3, 9)
    assert tokens.tolist() == [[5, 6, 9], [9, 9, 9]]
    assert given.tolist() == [[True, True, False], [False, False, False]]


def test_left_padding_is_in_front():
    tokens, hidden = left_padded([[5, 6], [7]], 9)
    assert tokens.tolist() == [[5, 6], [9, 7]]
    assert hidden.tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize(
    ("ids", "steps", "reason"),
    [
        ([40, 41, 42], [1, 2, 3], "length"),
        ([40, 1, 42], [1, 2, 3], "end"),
        ([40, 1, 42], [1, 2, -1], "end"),  # what lies behind it is no part of the text
        ([40, 1, 42], [-1, 2, 3], "unfinished"),
        ([40, 41, 42], [1, 2, -1], "unfinished"),
    ],
)
def test_a_row_says_why_it_stops(lm, ids, steps, reason):
    ids = [lm.special.eos if i == 1 else i for i in ids]
    page = page_of(lm, "A", ids, steps)
    assert lm.finish(page).finish_reasons == (reason,)
    assert reason in REASONS


def test_filling_behind_a_row_is_no_end_of_its_text(lm):
    """Rows of a batch are of one width; a shorter one has filling behind it."""
    request = lm.start(["A", "A fox met"], seed=0)
    tokens = request.canvas.tokens.masked_fill(~request.canvas.fixed, 40)
    page = Page(request, 1, replace(request.canvas, tokens=tokens, noisy=tokens < 0), tokens.sign())
    assert lm.finish(page).finish_reasons == ("canvas", "canvas")


def test_pieces_by_token_are_the_text_and_their_work_is_linear(lm, monkeypatch):
    """Any bytes: characters whole, in halves, and broken."""
    draw, ordinary = random.Random(0), [i for i in range(300) if i not in lm.special.all]
    whole = lm.encode(["The fox met a caf\u00e9 \u2603 \U0001f600 \u00f1"])[0]
    decoded = []

    def counted(self, ids):
        decoded.append(len(ids))
        return decode(self, ids)

    decode = PageReader.decode
    monkeypatch.setattr(PageReader, "decode", counted)
    for _ in range(20):
        ids = [i for _ in range(12) for i in (*whole, *draw.choices(ordinary, k=5))]
        steps = [draw.randint(1, 4) for _ in ids]
        page = page_of_any_length(lm, ids, steps)
        text = lm.show(page)
        decoded.clear()
        for how in ({"by_token": True}, {"by_step": True}):
            pieces = list(lm.reader.pieces(page, 0, **how))
            assert "".join(piece.text for piece in pieces) == text
            assert [i for piece in pieces for i in piece.tokens] == ids
        assert [piece.step for piece in lm.reader.pieces(page, 0, by_token=True)][1:] == steps
        assert sum(decoded) < 40 * len(ids)


def page_of_any_length(lm, ids, steps) -> Page:
    wide = torch.tensor([ids])
    canvas = Canvas(wide, torch.zeros_like(wide).bool(), torch.zeros_like(wide).bool())
    request = replace(lm.start("", seed=0), canvas=canvas, rows=(("", slice(0, len(ids))),))
    return Page(request, max(steps), canvas, torch.tensor([steps]))
