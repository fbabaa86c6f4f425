import hashlib
import os
import subprocess
import sys

import pytest
import torch
from reference import attention as naive
from safetensors.torch import load_file
from small_networks import LENGTH, VOCAB, config, network, tokens
from torch.testing import assert_close

from sfumato.errors import ConfigError
from sfumato.models import FAMILIES, DiffusionTransformer, TransformerConfig
from sfumato.models.attention import HIDDEN, Bidirectional, BlockCausal, Causal, attend_from
from sfumato.models.config import SIZES
from sfumato.models.layers import attention, rotary, rotate


def logits(model, ids, **options) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **options).logits


# --- who sees whom: change token j, see which outputs move ---


def moved(model, ids: torch.Tensor, **options) -> torch.Tensor:
    """[L, L]: whether the output at i moves when the token at j changes."""
    before = logits(model, ids, **options)
    columns = []
    for j in range(ids.shape[1]):
        other = ids.clone()
        other[:, j] = (other[:, j] + 1) % VOCAB
        columns.append((logits(model, other, **options) - before).abs().amax((0, 2)) > 1e-6)
    return torch.stack(columns, 1)


PLACE = torch.arange(LENGTH)
ROW, COLUMN = PLACE[:, None], PLACE[None]


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"attention": "full"}, torch.ones(LENGTH, LENGTH, dtype=torch.bool)),
        ({"attention": "causal"}, COLUMN <= ROW),
        ({"attention": "block_causal", "block_size": 3}, COLUMN // 3 <= ROW // 3),
        ({"attention": "block_causal", "block_size": 1}, COLUMN <= ROW),
        ({"attention": "block_causal", "block_size": 8}, torch.ones(LENGTH, LENGTH).bool()),
    ],
    ids=str,
)
def test_outputs_move_with_what_they_see_and_with_nothing_else(options, seen):
    model = network(**options)
    assert torch.equal(moved(model, tokens()), seen)
    # two documents, and padding in front: seen only within a document
    segments = torch.tensor([HIDDEN, HIDDEN, 0, 0, 0, 1, 1, 1])
    same = (segments[:, None] == segments[None]) & (segments != HIDDEN)
    place = torch.tensor([0, 1, 0, 1, 2, 0, 1, 2])  # within the document
    if options["attention"] == "causal":
        same = same & (place[None] <= place[:, None])
    elif options["attention"] == "block_causal":
        size = options["block_size"]
        same = same & (place[None] // size <= place[:, None] // size)
    got = moved(model, tokens(), segments=segments.expand(2, -1))
    visible = segments != HIDDEN
    assert torch.equal(got[visible], same[visible])


def test_a_pattern_can_be_given_with_the_call():
    model = network()
    assert torch.equal(moved(model, tokens(), attend=Causal()), COLUMN <= ROW)
    assert bool(moved(model, tokens()).all())


@pytest.mark.parametrize(
    "options",
    [{}, {"attention": "causal"}, {"attention": "block_causal", "block_size": 2}],
    ids=str,
)
def test_packed_documents_equal_separate_ones(options):
    model = network(**options)
    one, two = tokens(length=3), tokens(length=5, seed=2)
    segments = torch.tensor([0] * 3 + [1] * 5).expand(2, -1)
    packed = logits(model, torch.cat((one, two), 1), segments=segments)
    assert_close(packed[:, :3], logits(model, one), rtol=1e-4, atol=1e-4)
    assert_close(packed[:, 3:], logits(model, two), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"attention": "causal"}, {"attention": "block_causal", "block_size": 2}],
    ids=str,
)
@pytest.mark.parametrize("by", ["attention_mask", "segments"])
def test_padding_on_the_left_or_right_changes_nothing(options, by):
    model, ids = network(**options), tokens()
    alone = logits(model, ids)
    for front, behind in ((3, 0), (0, 2), (2, 1)):
        padded = torch.nn.functional.pad(ids, (front, behind), value=7)
        kept = torch.nn.functional.pad(torch.ones_like(ids), (front, behind))
        seen = kept if by == "attention_mask" else torch.where(kept == 1, 4, HIDDEN)
        got = logits(model, padded, **{by: seen})
        assert bool(got.isfinite().all())
        assert_close(got[:, front : front + LENGTH], alone, rtol=1e-4, atol=1e-4)


def test_a_row_does_not_depend_on_its_neighbours():
    model, ids = network(), tokens(5)
    together = logits(model, ids)
    for row in range(5):
        alone = logits(model, ids[row : row + 1])
        assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)


def test_attention_equals_the_naive_one():
    """Written out (with gradients) and torch's own (without), against loops in float64."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 5, 4, generator=draw)
    seen = torch.rand(2, 1, 5, 5, generator=draw) < 0.6
    seen = seen | torch.eye(5, dtype=torch.bool)
    bias = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    wanted = torch.empty_like(q)
    for row in range(2):
        for head in range(2):
            parts = (x[row, head].double().numpy() for x in (q, k, v))
            wanted[row, head] = torch.from_numpy(naive(*parts, seen[row, 0].numpy()))
    assert_close(attention(q, k, v, bias), wanted)
    with torch.no_grad():
        assert_close(attention(q, k, v, bias), wanted)


def test_rotary_positions_are_relative():
    """The product of two turned vectors depends on how far apart they are."""
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1, 1, 1, 8, generator=draw)

    def product(i: int, j: int) -> float:
        turned = []
        for x, place in ((a, i), (b, j)):
            cos, sin = rotary(torch.tensor([[place]]), 8, 10000.0)
            turned.append(rotate(x, cos, sin))
        return float((turned[0] * turned[1]).sum())

    assert product(5, 3) == pytest.approx(product(105, 103), abs=1e-4)
    assert product(5, 3) != pytest.approx(product(5, 4), abs=1e-3)
    assert product(0, 0) == pytest.approx(float((a * b).sum()), abs=1e-5)


# --- what is computed ---


@pytest.mark.parametrize("options", [{}, {"time_conditioned": True}], ids=str)
def test_outputs_at_some_positions_are_those_of_all(options):
    model, ids = network(**options), tokens()
    t = torch.tensor([0.2, 0.9])
    where = torch.tensor([[False, True] * 4, [False] * 7 + [True]])
    some = logits(model, ids, t=t, where=where)
    assert some.shape == (5, VOCAB)
    assert_close(some, logits(model, ids, t=t)[where], rtol=1e-5, atol=1e-5)
    none = logits(model, ids, t=t, where=torch.zeros_like(where))
    assert none.shape == (0, VOCAB)


def test_labels_give_the_cross_entropy_of_the_logits():
    model, ids = network(), tokens()
    where = ids % 2 == 0
    labels, weights = tokens(seed=5)[where], torch.rand(int(where.sum()))
    out = model(ids, where=where, labels=labels, weights=weights, excluded=(3,))
    scores = logits(model, ids)[where].index_fill(1, torch.tensor([3]), -torch.inf)
    nll = torch.nn.functional.cross_entropy(scores, labels, reduction="none")
    kept = labels != 3
    assert_close(out.nll[kept], nll[kept], rtol=1e-4, atol=1e-4)
    assert out.logits is None


def test_time_is_read_by_those_who_are_conditioned_on_it():
    ids = tokens()
    early, late = torch.tensor([0.1, 0.1]), torch.tensor([0.9, 0.1])
    timed = network(time_conditioned=True)
    change = (logits(timed, ids, t=late) - logits(timed, ids, t=early)).abs().amax((1, 2))
    assert float(change[0]) > 1e-3
    assert float(change[1]) == 0  # each row its own
    plain = network()
    assert torch.equal(logits(plain, ids, t=early), logits(plain, ids, t=late))
    assert torch.equal(logits(plain, ids), logits(plain, ids, t=late))


def test_a_new_model_predicts_without_context():
    """Output projections start at zero: the first loss is about ln V."""
    model = DiffusionTransformer(config()).eval()
    changed = moved(model, tokens())
    assert torch.equal(changed, torch.eye(LENGTH, dtype=torch.bool))


def test_dropout_acts_in_training_only():
    model, ids = network(dropout=0.5), tokens()
    assert torch.equal(logits(model, ids), logits(model, ids))
    assert_close(logits(model, ids), logits(network(), ids))
    model.train()
    assert not torch.equal(logits(model, ids), logits(model, ids))


@pytest.mark.parametrize("options", [{}, {"time_conditioned": True}], ids=str)
def test_gradient_checkpointing_changes_no_gradient(options):
    ids, t = tokens(), torch.tensor([0.3, 0.6])
    where = ids % 3 != 0
    grads = []
    for checkpointing in (False, True):
        model = network(**options).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.gradient_checkpointing
        model(
            ids, t=t, where=where, labels=ids[where], weights=torch.ones(len(ids[where]))
        ).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert_close(grads[1][name], grad, msg=name)


# --- keys and values of text already read ---


@pytest.mark.parametrize(
    ("options", "cuts"),
    [
        ({"attention": "causal"}, [3, 1, 4]),
        ({"attention": "causal"}, [1] * 8),
        ({"attention": "block_causal", "block_size": 2}, [2, 4, 2]),
        ({"attention": "block_causal", "block_size": 4}, [4, 4]),
    ],
    ids=str,
)
@pytest.mark.parametrize("padding", [0, 3])
def test_extended_key_values_equal_reading_it_all(options, cuts, padding):
    model, ids = network(**options), tokens()
    ids = torch.nn.functional.pad(ids, (padding, 0), value=5)
    segments = torch.zeros_like(ids)
    segments[:, :padding] = HIDDEN
    whole = logits(model, ids, segments=segments if padding else None)
    past, start = None, 0
    for size in cuts:
        stop = start + size + (padding if start == 0 else 0)
        first = {"segments": segments[:, :stop]} if start == 0 and padding else {}
        with torch.no_grad():
            out = model(ids[:, start:stop], past=past, **first)
        assert_close(out.logits[:, -size:], whole[:, stop - size : stop], rtol=1e-4, atol=1e-4)
        past = out.key_values if past is None else past.extend(out.key_values)
        start = stop
    assert past.length == ids.shape[1]


def test_key_values_are_values():
    model, ids = network(attention="causal"), tokens()
    with torch.no_grad():
        first = model(ids[:, :4]).key_values
        before = [k.clone() for k, _ in first.layers]
        second = model(ids[:, 4:], past=first).key_values
    longer = first.extend(second)
    assert (first.length, second.length, longer.length) == (4, 4, 8)
    assert all(torch.equal(k, old) for (k, _), old in zip(first.layers, before, strict=True))


# --- on disk ---


def digest(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": False, "time_conditioned": True},
        {"attention": "block_causal", "block_size": 4, "corruption": {"name": "uniform"}},
    ],
    ids=str,
)
def test_a_model_comes_back_as_it_was_saved(tmp_path, options):
    model = network(**options)
    model.save_pretrained(tmp_path)
    again, report = DiffusionTransformer.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    one, other = model.state_dict(), again.state_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(other[name], value), name
    assert dict(model.named_buffers()).keys() == dict(again.named_buffers()).keys()
    assert not again.training
    asked = {"t": torch.tensor([0.1, 0.7])}
    assert torch.equal(logits(again, tokens(), **asked), logits(model, tokens(), **asked))
    assert again.config.to_diff_dict() == model.config.to_diff_dict() | {
        k: v for k, v in again.config.to_diff_dict().items() if k in ("dtype", "architectures")
    }


def test_tied_embeddings_stay_tied_and_are_stored_once(tmp_path):
    model = network()
    model.save_pretrained(tmp_path)
    again = DiffusionTransformer.from_pretrained(tmp_path)
    assert again.head.weight is again.embed.weight
    assert set(load_file(tmp_path / "model.safetensors")) == {
        name for name in model.state_dict() if name != "head.weight"
    }
    loose = network(tie_word_embeddings=False)
    assert loose.head.weight is not loose.embed.weight


def test_a_fresh_process_without_a_network_loads_the_same_model(tmp_path):
    model = network(attention="causal")
    model.save_pretrained(tmp_path)
    code = (
        "import sys, hashlib, torch\n"
        "from sfumato.models import DiffusionTransformer\n"
        "model = DiffusionTransformer.from_pretrained(sys.argv[1])\n"
        f"ids = torch.tensor({tokens().tolist()})\n"
        "with torch.no_grad():\n"
        "    print(hashlib.sha256(model(ids).logits.numpy().tobytes()).hexdigest())\n"
    )
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == digest(logits(model, tokens()))


def test_auto_classes_know_the_family(tmp_path):
    from transformers import AutoConfig, AutoModelForMaskedLM

    network().save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), TransformerConfig)
    assert isinstance(AutoModelForMaskedLM.from_pretrained(tmp_path), DiffusionTransformer)
    assert FAMILIES["sfumato"] == (TransformerConfig, DiffusionTransformer)


# --- sizes ---

# weights of the six sizes with a vocabulary of 8192, tied: embeddings + layers
WEIGHTS = {
    "tiny": 5_311_232,
    "small": 13_768_320,
    "medium": 29_894_144,
    "large": 54_819_200,
    "xlarge": 91_246_848,
    "xxlarge": 210_799_616,
}


@pytest.mark.parametrize("size", SIZES)
def test_each_size_has_the_weights_it_says(size):
    width, layers, heads = SIZES[size]
    with torch.device("meta"):
        model = DiffusionTransformer(TransformerConfig.of_size(size))
    inner = model.config.intermediate_size
    assert inner >= 8 * width / 3 > inner - 64
    assert inner % 64 == 0
    head = width // heads
    layer = 4 * width * width + 3 * width * inner + 2 * width + 2 * head
    assert model.num_weights() == 8192 * width + layers * layer + width
    assert model.num_weights() == WEIGHTS[size]


def test_a_size_can_be_changed_in_part():
    small = TransformerConfig.of_size("small", vocab_size=100, num_hidden_layers=2)
    assert (small.hidden_size, small.num_hidden_layers, small.vocab_size) == (384, 2, 100)


# --- what users get wrong ---


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: TransformerConfig.of_size("smal"),
            "unknown model size 'smal'; did you mean small",
        ),
        (
            lambda: config(hidden_size=18),
            "hidden_size 18 must be an even multiple of num_attention",
        ),
        (
            lambda: network(attention="casual"),
            "'attention' must be one of full, causal, block_causal; got 'casual'",
        ),
        (lambda: network(attention="block_causal"), "'block_causal' needs block_size"),
        (lambda: BlockCausal(0), "block size must be at least 1, got 0"),
        (lambda: network()(tokens(length=33)), "33 positions, but the model was built for .* 32"),
        (lambda: network(time_conditioned=True)(tokens()), "this model reads the time: pass t"),
        (lambda: network()(tokens(), tokens=3), r"unknown argument \['tokens'\]"),
        (lambda: network()(tokens(), labels=tokens()), "labels need `where` and `weights`"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_names_give_patterns():
    assert attend_from("full") == Bidirectional()
    assert attend_from("causal") == Causal()
    assert attend_from("block_causal", 4) == BlockCausal(4)
