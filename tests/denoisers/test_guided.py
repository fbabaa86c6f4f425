import pytest
import torch
from small_networks import network, reader
from test_full import MASK, VOCAB, T, close, noisy, text

from sfumato.denoisers.full import Full, autoregressive
from sfumato.denoisers.guided import towards_prompt, towards_source
from sfumato.errors import ConfigError
from sfumato.testing import check_denoiser
from sfumato.types import ABSENT


def sources() -> torch.Tensor:
    source = text(3, 5, 9)
    source[0, 3:] = ABSENT
    return source


KINDS = {
    "encoder": lambda: Full(reader(), MASK),
    "prefix": lambda: Full(network(), MASK),
    "causal": lambda: autoregressive(reader(attention="causal"), MASK),
}


def by_formula(shown, unshown, scale):
    """Each token's probability p_c^(1 + w) p_u^-w, normalised, one number after the other."""
    out = torch.zeros_like(shown)
    for row in range(len(shown)):
        c, u = shown[row].softmax(-1), unshown[row].softmax(-1)
        odds = [0 if v == MASK else c[v] ** (1 + scale) * u[v] ** -scale for v in range(VOCAB)]
        out[row] = torch.tensor([float(o) / float(sum(odds)) for o in odds])
    return out


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_guidance_is_the_formula(kind):
    plain, source, tokens = KINDS[kind](), sources(), noisy(3, 6)
    guided = towards_source(plain, source, 1.5)
    where = tokens == MASK
    logits = guided(tokens, T, where)
    assert (logits[:, MASK] == -torch.inf).all()
    shown, unshown = plain.conditioned(source)(tokens, T, where), plain(tokens, T, where)
    assert not torch.allclose(shown.softmax(-1), unshown.softmax(-1), atol=1e-2)
    close(logits.softmax(-1), by_formula(shown, unshown, 1.5))
    whole = guided(tokens, T)
    assert whole.shape == (3, 6, VOCAB)
    close(whole[where].softmax(-1), logits.softmax(-1))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_scale_0_is_the_denoiser_itself(kind):
    plain, source, tokens = KINDS[kind](), sources(), noisy(3, 6)
    shown = plain.conditioned(source)
    assert torch.equal(towards_source(plain, source, 0.0)(tokens, T), shown(tokens, T))
    if not plain.shift:
        where = tokens != MASK
        found = towards_source(plain, source, 0.0).leave_one_out(tokens, T, where)
        assert torch.equal(found, shown.leave_one_out(tokens, T, where))


@pytest.mark.parametrize("kind", ["encoder", "prefix"])
@torch.no_grad()
def test_one_forward_says_what_two_say(kind, monkeypatch):
    plain, source, tokens = KINDS[kind](), sources(), noisy(3, 6)
    guided = towards_source(plain, source, 2.0).given(left=text(3, 2, 4), right=text(3, 1, 5))
    calls = []
    handle = plain.model.register_forward_hook(lambda *_: calls.append(1))
    where = (tokens == MASK) & torch.tensor([[True], [False], [True]])
    once = guided(tokens, T, where)
    left_out = guided.leave_one_out(tokens, T, where)
    assert len(calls) == 2
    handle.remove()
    monkeypatch.setattr(Full, "beside", lambda self, other: None)
    apart = towards_source(plain, source, 2.0).given(left=text(3, 2, 4), right=text(3, 1, 5))
    close(apart(tokens, T, where), once)
    close(apart.leave_one_out(tokens, T, where), left_out)


def test_the_prompt_is_hidden_from_one_side_wherever_it_stands():
    plain, page = Full(network(), MASK), noisy(3, 8)
    hidden = torch.zeros(3, 8, dtype=torch.bool)
    hidden[:, 1:4], hidden[:, 7] = True, True
    with torch.no_grad():
        whole = towards_prompt(plain, 1.0, hidden)(page, T)
        c, u = plain(page, T), plain(page.masked_fill(hidden, MASK), T)
        close(whole.softmax(-1), (2 * c - u).nan_to_num(-torch.inf).softmax(-1))
        parts = towards_prompt(plain, 1.0, hidden).given(left=page[:, :2])
        parts = parts.given(left=page[:, 2:3]).given(right=page[:, 6:])
        close(parts(page[:, 3:6], T).softmax(-1), whole[:, 3:6].softmax(-1))


def test_a_prompt_before_the_page_is_hidden_too():
    plain, page, left = Full(network(), MASK), noisy(3, 4), text(3, 3, 8)
    padding = torch.tensor([[True, False, False], [False] * 3, [False] * 3])
    prompt = ~padding
    prompt[:, 1] = False  # say, a token that is no text
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    with torch.no_grad():
        found = towards_prompt(plain, 1.0, nothing, left, padding, prompt)(page, T)
        c = plain.given(left, left_hidden=padding)(page, T)
        u = plain.given(left.masked_fill(prompt, MASK), left_hidden=padding)(page, T)
    close(found.softmax(-1), (2 * c - u).nan_to_num(-torch.inf).softmax(-1))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_source_is_read_as_if_it_were_alone(kind):
    """However long its neighbours' are, and wherever its padding is."""
    plain, source, tokens = KINDS[kind](), text(3, 5, 9), noisy(3, 6)
    source[0, 3:], source[1, :2], source[2, 4] = ABSENT, ABSENT, ABSENT
    together = plain.conditioned(source)(tokens, T)
    for row, own in enumerate((source[:1, :3], source[1:2, 2:], source[2:, :4])):
        one = slice(row, row + 1)
        close(plain.conditioned(own)(tokens[one], T[one]), together[one])


def test_the_encoder_runs_once_for_a_request():
    model, tokens = reader(), noisy(3, 6)
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        guided = towards_source(Full(model, MASK), sources(), 1.0)
        for _ in range(3):
            guided = guided.given(left=text(3, 1))
            guided(tokens, T)
    assert len(calls) == 1


@pytest.mark.parametrize("scale", [-0.5, float("nan"), float("inf")])
def test_a_scale_that_says_nothing_is_refused(scale):
    with pytest.raises(ConfigError, match="guidance must be a number of at least 0"):
        towards_source(Full(reader(), MASK), sources(), scale)


@pytest.mark.parametrize("kind", ["encoder", "prefix", "causal"])
def test_a_guided_denoiser_keeps_the_contract(kind):
    guided = _SameSource(KINDS[kind](), text(1, 4, 3))
    check_denoiser(guided, vocab_size=VOCAB, mask_id=MASK, packs=kind != "prefix")


class _SameSource:
    """Guided towards one source, whatever the number of rows."""

    def __init__(self, plain, source, around=()):
        self.plain, self.source, self.around = plain, source, around

    def __call__(self, tokens, t, where=None, *, segments=None):
        guided = towards_source(self.plain, self.source.expand(len(tokens), -1), 0.7)
        for given in self.around:
            guided = guided.given(**given)
        return guided(tokens, t, where, segments=segments)

    def given(self, left=None, right=None):
        return _SameSource(self.plain, self.source, (*self.around, {"left": left, "right": right}))
