"""Calibration: what it measures, what it picks, and that the pick is used afterwards."""

import json
import math
from dataclasses import replace

import pytest
import torch
from tiny_lm import CANVAS, SENTENCES, UNIFORM, saved, tiny_lm, tokenizer
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from sfumato import DiffusionLM
from sfumato.data.preparation import prepare
from sfumato.data.tokenizer_files import save_tokenizer
from sfumato.decoding.unmask import Threshold
from sfumato.errors import CheckpointError, ConfigError, DataError
from sfumato.evals.calibrate import calibrate, write_chosen
from sfumato.evals.calibrate_options import CalibrateOptions
from sfumato.evals.pieces import draw_pieces, score
from sfumato.evals.settings import BLOCKS, RULES, Grid, Setting, Wanted
from sfumato.evals.speed import autoregressive_lap, lap
from sfumato.likelihood.exact import by_decoder
from sfumato.lm.calibrated import Calibration
from sfumato.types import Batch

TEXTS = [f"{sentence} {n}" for n in range(12) for sentence in SENTENCES[:3]]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def blocks():
    return tiny_lm(attention="block_causal", block_size=4)


def sharp(lm):
    """Predictions so different that rounding decides nothing."""
    lm.model.norm.weight.data.fill_(8.0)
    return lm


# --- what is compared ---


def test_a_model_of_blocks_is_compared_in_its_own_blocks(blocks):
    grid = Grid.of(blocks, Wanted())
    assert [family.settings[0].step for family in grid.families] == list(RULES)
    assert {s.block for family in grid.families for s in family.settings} == {None}
    assert (grid.window, grid.canvas) == (4, CANVAS)
    # 6 blocks of 4: 3, 2, 1.5 -> 2, and 1 steps for each
    assert [s.num_steps for s in grid.families[-1].settings] == [18, 12, 6]
    assert [grid.steps_each(blocks, s) for s in grid.families[-1].settings] == [3, 2, 1]
    assert grid.steps_each(blocks, grid.reference) is None


def test_a_models_own_rule_is_compared_in_several_numbers_of_steps(blocks):
    lm = tiny_lm(attention="block_causal", block_size=4)
    lm.options = replace(lm.options, step="entropy_bound", step_options={"gamma": 0.4})
    [family] = Grid.of(lm, Wanted(step=("own",), num_steps=(12, 6))).families
    assert family.settings == tuple(
        Setting("entropy_bound", {"gamma": 0.4}, number) for number in (12, 6)
    )
    assert family.scored
    [family] = Grid.of(blocks, Wanted(step=("own",))).families  # none is named: ancestral
    assert [s.step for s in family.settings] == ["ancestral"] * 3
    lm.options = replace(lm.options, step=Threshold(lm.corruption.schedule), step_options={})
    with pytest.raises(ConfigError, match="own step is a rule without a name"):
        Grid.of(lm, Wanted(step=("own",)))


def test_what_is_measured_is_not_warned_of(blocks, text, tmp_path, caplog):
    lm = tiny_lm(attention="block_causal", block_size=4)
    loud = Calibration(tmp_path, "", 0.01, CANVAS, False, ())
    object.__setattr__(loud, "warn", lambda *asked: pytest.fail("warned"))
    lm.calibration = loud
    options = CalibrateOptions(rows=8, num_texts=1, confidence=0.5, step=("probability",))
    folder = saved(lm, tmp_path / "model")
    calibrate(lm, text, options, model_name=str(folder))
    assert lm.calibration is loud


def test_a_model_of_full_attention_is_compared_in_several_sizes_of_block():
    lm = tiny_lm()
    lm.options = replace(lm.options, canvas=48)
    grid = Grid.of(lm, Wanted(step=("threshold=0.9,0.5", "probability"), block=(8, 16)))
    assert [len(family.settings) for family in grid.families] == [2, 5, 2, 5]
    assert [family.settings[0].block for family in grid.families] == [8, 8, 16, 16]
    assert grid.window == grid.reference.block == 16
    assert grid.families[0].settings[1].name == "threshold level=0.5 block=8"
    lm.options = replace(lm.options, canvas=32, block=8)
    grid = Grid.of(lm, Wanted())
    assert [f.settings[0].block for f in grid.families[:: len(RULES)]] == list(BLOCKS)
    assert grid.reference.block == 8


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"step": ("treshold",)}, "unknown step 'treshold'; did you mean threshold"),
        ({"step": ("threshold=high",)}, "expected numbers after 'threshold='"),
        ({"step": ("margin=2",)}, "has no option to try values of; give num_steps"),
        ({"step": ("threshold=1.5",)}, r"threshold level must be in \(0, 1\]"),
        ({"step": ("factor", "factor")}, "names something twice"),
        ({"num_steps": (0,)}, "at least 1"),
        ({"num_steps": (20,), "step": ("margin",)}, "does not share out evenly over 6 blocks"),
        ({"reference": "threshold"}, "reference must be one of probability, margin"),
        ({"block": (8,)}, "trained on blocks of 4 tokens, got"),
    ],
)
def test_a_wrong_wish_is_refused(blocks, wanted, message):
    with pytest.raises(ConfigError, match=message):
        Grid.of(blocks, Wanted(**wanted))


def test_models_without_a_choice_are_refused(text, blocks):
    for lm, message in (
        (tiny_lm(objective="next_token"), "autoregressive: it writes one token a pass"),
        (tiny_lm(UNIFORM), "trained on uniform noise"),
    ):
        with pytest.raises(ConfigError, match=message):
            Grid.of(lm, Wanted())
    with pytest.raises(ConfigError, match="every block must divide"):
        Grid.of(tiny_lm(), Wanted(block=(5,)))
    guided = tiny_lm()
    guided.options = replace(guided.options, guidance=1.0)
    with pytest.raises(ConfigError, match="plain decoding; take approx_cache, guidance"):
        Grid.of(guided, Wanted())


# --- what is measured ---


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_pieces_of_a_model_of_blocks_are_whole_texts(text, layout):
    lm = sharp(tiny_lm(attention="block_causal", block_size=4, layout=layout))
    grid = Grid.of(lm, Wanted())
    pieces, name = draw_pieces(lm, grid, text, 10, seed=0)
    lengths = sorted(len(ids) + 2 for ids in lm.encode(TEXTS))
    assert name["documents"] == len(TEXTS)
    for piece in pieces:
        assert len(piece.tokens) in lengths
        whole = min(len(piece.tokens), CANVAS)
        stop = whole // 4 * 4 if layout == "packed" else -(-whole // 4) * 4
        assert (piece.start, piece.stop) == (0, stop)
        assert piece.count == min(stop, whole) - 1  # its opening is given
    assert pieces != draw_pieces(lm, grid, text, 10, seed=1)[0]
    settings = [grid.reference, Setting("threshold", {"level": 0.3}), Setting("margin", {}, 12)]
    found = torch.stack(list(score(lm, grid, settings, pieces[:3], range(3), 0)))
    for row, piece in enumerate(pieces[:3]):
        tokens = torch.full((1, piece.stop), lm.special.filler)
        tokens[0, : len(piece.tokens)] = torch.tensor(piece.tokens[: piece.stop])
        trainable = torch.ones_like(tokens, dtype=torch.bool)
        trainable[0, 0] = False
        batch = Batch(tokens, trainable, torch.zeros_like(tokens), torch.arange(1))
        for number, setting in enumerate(settings):
            rule = setting.applied(lm.options).rule(lm.corruption)
            steps = setting.num_steps and 2 * (piece.stop // 4)
            around = {"num_steps": steps, "block": 4, "lookahead": False}
            expected = by_decoder(lm.denoiser, lm.corruption, batch, rule, **around)
            assert_close(found[number, row], expected.nats[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lookahead", [True, False])
def test_windows_of_a_text_add_up_to_the_whole(text, lookahead):
    lm = sharp(tiny_lm())
    lm.options = replace(lm.options, lookahead=lookahead)
    grid = Grid.of(lm, Wanted(block=(4, 8)))
    [one], _ = draw_pieces(lm, grid, text, 1, seed=0)
    assert one.stop - one.start == 8
    ids = one.tokens
    windows = [replace(one, start=at, stop=at + 8) for at in range(0, CANVAS, 8)]
    tokens = torch.full((1, CANVAS), lm.special.filler)
    tokens[0, : len(ids)] = torch.tensor(ids)
    trainable = torch.ones_like(tokens, dtype=torch.bool)
    trainable[0, 0] = False
    batch = Batch(tokens, trainable, torch.zeros_like(tokens), torch.arange(1))
    for setting in (Setting("probability", block=4), Setting("factor", {"factor": 1.5}, None, 8)):
        total = sum(float(next(score(lm, grid, [setting], [w], [0], 0))[0]) for w in windows)
        rule = setting.applied(lm.options).rule(lm.corruption)
        around = {"block": setting.block, "lookahead": lookahead}
        expected = by_decoder(lm.denoiser, lm.corruption, batch, rule, **around)
        assert total == pytest.approx(float(expected.nats[0]), rel=1e-4)


def test_windows_are_drawn_evenly_from_where_there_is_text(text):
    lm = tiny_lm()
    grid = Grid.of(lm, Wanted(block=(8,)))
    pieces, _ = draw_pieces(lm, grid, text, len(TEXTS), seed=0)
    assert {piece.start for piece in pieces} == {0, 8}
    assert all(piece.count == min(8, len(piece.tokens) - piece.start) - (piece.start == 0)
               for piece in pieces)  # fmt: skip


def test_prepared_texts_are_those_of_the_validation_split(text, tmp_path):
    lm = tiny_lm(layout="packed")
    prepare(text, tmp_path / "data", tokenizer(), validation=0.3, workers=1)
    grid = Grid.of(lm, Wanted(block=(4,)))
    pieces, name = draw_pieces(lm, grid, tmp_path / "data", 100, seed=0)
    assert name["split"] == "validation"
    assert name["fingerprint"]
    wrapped = {(lm.special.bos, *ids, lm.special.eos)[:CANVAS] for ids in lm.encode(TEXTS)}
    assert 0 < len(pieces) < len(TEXTS)
    assert {piece.tokens for piece in pieces} <= wrapped


def test_one_long_text_gives_as_many_pieces_as_it_has_canvases(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text(" ".join(SENTENCES * 20))
    lm = tiny_lm(layout="packed")
    grid = Grid.of(lm, Wanted())
    [whole] = lm.encode([path.read_text()])
    pieces, name = draw_pieces(lm, grid, path, 5, seed=0)
    assert len(pieces) == 5
    assert name["stretches"] == -(-(len(whole) + 2) // grid.canvas)
    assert len({piece.tokens for piece in pieces}) > 1
    stream = [lm.special.bos, *whole, lm.special.eos]
    starts = range(0, len(stream), grid.canvas)
    assert {piece.tokens for piece in pieces} <= {
        tuple(stream[start : start + grid.canvas]) for start in starts
    }


def test_texts_shorter_than_a_block_are_counted(tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("a\nThe bear lost his red ball.\nb\n")
    lm = tiny_lm(layout="packed")
    grid = Grid.of(lm, Wanted(block=(8,)))
    from sfumato.data.sources import Source

    pieces, name = draw_pieces(lm, grid, Source(str(short), separator="\n"), 9, 0)
    assert (len(pieces), name["too_short"]) == (1, 2)
    short.write_text("a\n")
    with pytest.raises(DataError, match="shorter than a block of 8 tokens"):
        draw_pieces(lm, grid, short, 9, 0)


def test_forwards_are_those_of_the_network(blocks):
    one = lap(blocks, step="left_to_right", seed=0, length=12)
    pages = list(blocks.stream(step="left_to_right", seed=0, length=12))
    assert one.forwards == pages[-1].step
    assert one.tokens == len(blocks.finish(pages[-1]).tokens[0])
    assert one.seconds > 0
    network = blocks.network.compute(blocks.options.precision)
    before = network.passes
    told = autoregressive_lap(blocks, 10, seed=0)
    assert (told.tokens, told.forwards, network.passes - before) == (10, 10, 10)
    again = lap(blocks, step="left_to_right", seed=0, length=12)
    assert again.text == one.text


# --- what is picked ---

QUICK = {"rows": 25, "num_texts": 1, "step": ("threshold=0.99,0.3",)}


@pytest.fixture
def steady(monkeypatch):
    """Every pass takes as long as any other, whatever else the machine does."""

    def steadily(lm, **changes):
        one = lap(lm, **changes)
        return replace(one, seconds=one.forwards / 100)

    monkeypatch.setattr("sfumato.evals.certify.lap", steadily)


def made_by(lm, folder, text, **options):
    return calibrate(lm, text, CalibrateOptions(**(QUICK | options)), model_name=str(folder))


@pytest.fixture(scope="module")
def known(taught_lm, tmp_path_factory):
    """A model that is sure of what it knows, its folder, and texts like those it knows."""
    folder = saved(taught_lm, tmp_path_factory.mktemp("known") / "model")
    path = tmp_path_factory.mktemp("text") / "known.jsonl"
    path.write_text("".join(json.dumps({"text": SENTENCES[n % 4]}) + "\n" for n in range(40)))
    return taught_lm, folder, path


@pytest.mark.usefixtures("steady")
def test_the_pick_is_written_and_used_by_generate_afterwards(known, tmp_path):
    lm, folder, path = known
    made = made_by(lm, folder, path, block=(8,), tolerance=0.5)
    results = made["results"]
    chosen = results["settings"][results["chosen"]]
    assert chosen["safe"]
    assert chosen["name"].startswith("threshold level=")
    assert chosen["tokens_per_second"] == max(
        row["tokens_per_second"] for row in results["settings"] if row["safe"]
    )
    assert (
        chosen["tokens_per_second"] > results["settings"][results["reference"]]["tokens_per_second"]
    )
    lm.save(tmp_path)
    config = tmp_path / "generation_config.json"
    values = json.loads(config.read_text()) | {"num_steps": 24, "top_k": 50, "of_others": [1]}
    config.write_text(json.dumps(values))
    write_chosen(made, tmp_path)
    written = json.loads(config.read_text())
    changed = {"step", "step_options", "block"}
    kept = {key: value for key, value in written.items() if key not in changed}
    assert kept == {key: value for key, value in values.items() if key != "num_steps"}
    later = DiffusionLM.from_pretrained(tmp_path).generate(seed=0)
    told = chosen["setting"]
    assert (later.options.step, later.options.block) == ("threshold", 8)
    assert later.options.step_options == told["step_options"]
    own = {**told, "seed": 0, "top_k": 50}
    assert later.tokens == lm.generate(**own).tokens
    assert later.num_steps < CANVAS - 1


def test_a_record_says_everything(known):
    lm, folder, path = known
    made = made_by(lm, folder, path, block=(8,), seed=3)
    assert made["models"]["model"]["path"] == str(folder)
    assert len(made["models"]["model"]["sha256"]) == 64
    assert made["settings"]["options"]["tolerance"] == 0.05
    assert made["settings"]["data"]["name"] == str(path)
    assert made["seed"] == 3
    results = made["results"]
    assert (results["texts"], results["families"]) == (25, 1)
    reference, in_order, *rows = results["settings"]
    assert reference["name"] == "probability block=8"
    assert reference["excess"]["value"] == 0
    assert in_order["setting"]["step"] == "left_to_right"
    for row in rows[-2:]:
        assert {"p_value", "excess", "risk", "safe", "tokens_per_second", "laps"} <= set(row)
    json.dumps(made)
    assert results["autoregression"]["tokens_per_forward"] == 1
    assert results["autoregression_is_faster"] in (True, False)


def test_the_excess_and_the_risk_are_what_they_are_called(known):
    lm, folder, path = known
    made = made_by(lm, folder, path, step=("probability",), num_steps=(3,), block=(8,))
    row = made["results"]["settings"][-1]
    grid = Grid.of(lm, Wanted(("probability",), (3,), (8,)))
    pieces, _ = draw_pieces(lm, grid, path, 25, 0)
    each = []
    for piece in pieces:
        settings = [grid.reference, grid.families[0].settings[0]]
        one, other = (float(x[0]) for x in score(lm, grid, settings, [piece], [0], 0))
        each.append((other - one) / piece.count)
    assert row["excess"]["value"] == pytest.approx(sum(each) / 25, rel=1e-4)
    clipped = [min(max(x, 0), 0.5) for x in each]
    assert row["risk"] == pytest.approx(sum(clipped) / 25, rel=1e-4)
    assert row["clipped"] == pytest.approx(sum(x >= 0.5 for x in each) / 25)


def test_another_reference_is_measured_against(known):
    lm, folder, path = known
    wanted = {"step": ("threshold=0.5",), "block": (8,)}
    usual = made_by(lm, folder, path, **wanted)["results"]
    strict = made_by(lm, folder, path, **wanted, reference="left_to_right")["results"]
    assert strict["in_order"] == strict["reference"] == 0
    assert strict["settings"][0]["name"] == "left_to_right block=8"
    gap = usual["settings"][usual["in_order"]]["excess"]["value"]
    one, other = (run["settings"][-1]["excess"]["value"] for run in (usual, strict))
    assert other == pytest.approx(one - gap, abs=1e-7)  # sums of float32


def test_where_nothing_is_certified_nothing_is_chosen(text, blocks, tmp_path):
    folder = saved(sharp(tiny_lm(attention="block_causal", block_size=4)), tmp_path)
    lm = DiffusionLM.from_pretrained(folder)
    options = {"step": ("probability",), "num_steps": (6,), "tolerance": 1e-3}
    results = made_by(lm, folder, text, **options)["results"]
    assert results["chosen"] is None
    assert results["reason"].startswith("nothing is certified")
    assert not any(row["safe"] for row in results["settings"])


@pytest.mark.usefixtures("steady")
def test_safe_settings_that_are_no_faster_are_not_chosen(known):
    lm, folder, path = known
    # no prediction is so sure, so that these are the reference's own passes
    made = made_by(lm, folder, path, step=("threshold=1.0",), block=(8,))
    row = made["results"]["settings"][-1]
    assert row["safe"]
    assert row["excess"]["value"] == 0
    assert made["results"]["chosen"] is None
    assert made["results"]["reason"].startswith("no certified setting is faster")


def test_too_few_texts_are_refused_before_anything_is_measured(known):
    lm, folder, path = known
    with pytest.raises(ConfigError, match=r"24 texts certify nothing .* give at least 25"):
        made_by(lm, folder, path, rows=24, block=(8,))
    with pytest.raises(ConfigError, match=r"over 2 families of settings, .* at least 32"):
        made_by(lm, folder, path, block=(8, 4))


def test_rules_that_look_at_what_was_drawn_need_a_judge(known, tmp_path):
    lm, folder, path = known
    with pytest.raises(ConfigError, match=r"step 'wino' chooses or revises .* give a judge"):
        made_by(lm, folder, path, step=("wino",), block=(8,))
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer()), num_attention_heads=2, **shape)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    save_tokenizer(tokenizer(), tmp_path)
    options = {"step": ("wino=0.9", "threshold=0.9"), "block": (8,), "judge": str(tmp_path)}
    made = made_by(lm, folder, path, **options)
    wino, threshold = made["results"]["settings"][-2:]
    assert "excess" not in wino
    assert not wino["safe"]
    assert "excess" in threshold
    for row in (wino, threshold, {"judge": made["results"]["held_out"]}):
        assert math.isfinite(row["judge"]["perplexity"]["value"])
        assert row["judge"]["entropy"] > 0
    assert made["models"]["judge"]["path"] == str(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0}, "tolerance must be above 0"),
        ({"confidence": 1.0}, r"confidence must be in \[0.5, 1\)"),
        ({"rows": 0}, "rows must be at least 1"),
        ({"test": "luck"}, "test must be one of hoeffding_bentkus, betting"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        CalibrateOptions(**options)


def test_a_damaged_generation_config_is_not_written_over(tmp_path):
    made = {"results": {"chosen": 0, "settings": [{"setting": {"step": "margin"}}]}}
    config = tmp_path / "generation_config.json"
    config.write_text("[1]")
    with pytest.raises(CheckpointError, match=r"config.json: expected a JSON object"):
        write_chosen(made, tmp_path)
    assert config.read_text() == "[1]"
