import math
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from sfumato.errors import CheckpointError, ConfigError, DataError, MissingExtra
from sfumato.evals.judge import Judge
from sfumato.evals.text import text_report
from sfumato.evals.weights import find_weights
from sfumato.storage.tensors import fingerprint

TEXTS = ["Once upon a time.", "", "Tom ran.", "A caf\u00e9 \u2603!", "  \n", "the end " * 9]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCAB = ["<s>", "</s>", "<pad>", "<x>", *ALPHABET, "ab"]
SHAPE = {
    "vocab_size": len(VOCAB),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}


def saved(folder, model, **special):
    """A model folder with a tokenizer in which every byte is a token, and "ab"."""
    vocab = {piece: i for i, piece in enumerate(VOCAB)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def shaken(model):
    """Random weights, large enough for predictions to differ."""
    torch.manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = shaken(LlamaForCausalLM(LlamaConfig(**SHAPE)))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return saved(tmp_path_factory.mktemp("judge"), model, **special)


@pytest.fixture(scope="module")
def judge(folder):
    return Judge.load(folder)


def test_nats_are_the_sum_of_next_token_losses_after_the_start(judge):
    verdict = judge(TEXTS)
    for row, text in enumerate(TEXTS):
        ids = judge.tokenizer.encode(text, add_special_tokens=False) if text.strip() else []
        logp = judge.model(torch.tensor([[VOCAB.index("<s>"), *ids]])).logits[0].log_softmax(-1)
        expected = -sum(float(logp[place, token]) for place, token in enumerate(ids))
        assert float(verdict.nats[row]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert verdict.tokens[row] == len(ids)
        assert verdict.bytes[row] == (len(text.encode()) if text.strip() else 0)


def test_batched_equals_one_by_one(judge):
    together = judge(TEXTS).nats
    assert_close(together, torch.cat([judge([text]).nats for text in TEXTS]), rtol=1e-5, atol=1e-5)
    assert torch.equal(judge(TEXTS).nats, together), "the same call twice"


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_the_batch_size_does_not_matter(folder, judge, batch_tokens):
    other = Judge.load(folder, batch_tokens=batch_tokens)
    assert_close(other(TEXTS).nats, judge(TEXTS).nats, rtol=1e-5, atol=1e-5)


def test_a_uniform_judge_reads_the_size_of_the_vocabulary(tmp_path):
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    torch.nn.init.zeros_(model.lm_head.weight)
    verdict = Judge.load(saved(tmp_path, model, eos_token="</s>"))(TEXTS)
    assert verdict.perplexity.value == pytest.approx(len(VOCAB), rel=1e-5)
    assert verdict.perplexity.error == pytest.approx(0, abs=1e-3)
    assert verdict.bits_per_byte.value == pytest.approx(math.log2(len(VOCAB)), rel=1e-5)


def test_empty_texts_are_counted_nowhere(judge):
    verdict, without = judge(TEXTS), judge([text for text in TEXTS if text.strip()])
    assert verdict.perplexity.value == pytest.approx(without.perplexity.value)
    assert verdict.perplexity.error == pytest.approx(without.perplexity.error, rel=1e-5)
    with pytest.raises(DataError, match="every text is empty"):
        _ = judge(["", " "]).perplexity


def test_a_long_text_is_scored_up_to_the_limit_and_so_are_its_bytes(folder, judge):
    verdict = Judge.load(folder, limit=9)(["Once upon a time.", "Tom ran.", "\u00e9" * 9])
    assert verdict.tokens.tolist() == [9, 8, 9]
    assert verdict.bytes.tolist() == [9, 8, 10], "a character that was begun counts whole"
    assert verdict.truncated == 2
    assert_close(verdict.nats[:2], judge(["Once upon", "Tom ran."]).nats, rtol=1e-5, atol=1e-5)


def test_a_special_token_spelt_in_a_text_is_read_as_text(judge):
    assert judge.tokenize(["a</s>b"]) == [[VOCAB.index(c) for c in "a</s>b"]]


def test_the_default_limit_is_what_fits_the_model(judge):
    assert judge.limit == 127
    assert judge(["a" * 500]).tokens.tolist() == [127]


@pytest.mark.parametrize("limit", [0, 128])
def test_a_limit_beyond_the_model_is_refused(folder, limit):
    with pytest.raises(ConfigError, match="limit must be from 1 to 127 tokens"):
        Judge.load(folder, limit=limit)


def test_settings_name_the_model_and_its_weights(folder, judge):
    assert judge.settings() == {
        "model": str(folder),
        "sha256": fingerprint([folder / "model.safetensors"]),
        "dtype": "float32",
        "start_token": "<s>",
        "limit_tokens": 127,
    }


def test_report_has_perplexity_only_with_everything_beside_it(judge):
    report = text_report(TEXTS, ["Once upon a time.", "The end."], judge)
    assert report["texts"] == 6
    assert report["empty"] == 2
    assert report["perplexity"] == vars(judge(TEXTS).perplexity)
    for measure in ("bits_per_byte", "entropy", "distinct", "repetition", "bleu", "self_bleu"):
        assert measure in report
    assert report["mean_tokens"] == pytest.approx(judge(TEXTS).tokens.sum().item() / 4)
    assert report["bleu"] > report["self_bleu"]
    with pytest.raises(DataError, match="expected texts to evaluate, got 2"):
        text_report(["", "\n"], ["a"], judge)


def test_pickled_weights_are_refused(folder, tmp_path):
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights"):
        Judge.load(tmp_path)


def test_a_model_that_looks_ahead_is_refused(tmp_path):
    model = shaken(BertLMHeadModel(BertConfig(**SHAPE)))
    with pytest.raises(CheckpointError, match="reads tokens ahead"):
        Judge.load(saved(tmp_path, model, bos_token="<s>"))


def test_a_model_without_its_head_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"lacks weights .*lm_head"):
        Judge.load(saved(tmp_path, LlamaModel(LlamaConfig(**SHAPE)), bos_token="<s>"))


def test_a_tokenizer_without_a_start_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="neither a bos nor an eos"):
        Judge.load(saved(tmp_path, LlamaForCausalLM(LlamaConfig(**SHAPE))))


def test_a_folder_of_something_else_is_refused(folder, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="is not a causal language model"):
        Judge.load(tmp_path)


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="neither a local model nor"):
        Judge.load(tmp_path / "absent")


def test_several_gguf_models_in_a_folder_are_refused(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"a\.gguf, b\.gguf"):
        find_weights(tmp_path)


def test_gguf_without_its_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").touch()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtra, match=r"sfumato\[gguf\]"):
        Judge.load(tmp_path)


def test_a_gguf_model_scores_like_the_folder_that_it_was_made_of(folder, judge, tmp_path):
    gguf = pytest.importorskip("gguf")
    write_gguf(gguf, tmp_path / "model.gguf", judge.model)
    for path in (tmp_path, tmp_path / "model.gguf"):
        assert_close(Judge.load(path)(TEXTS).nats, judge(TEXTS).nats, rtol=1e-4, atol=1e-4)


def write_gguf(gguf, path, model):
    """A Llama in llama.cpp's layout, which interleaves the halves of rotary queries and keys."""
    config, heads = model.config, model.config.num_attention_heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCAB)
    writer.add_token_types([3] * 4 + [1] * (len(VOCAB) - 4))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        values = weight.numpy().astype(np.float32)
        if "q_proj" in name or "k_proj" in name:
            halves = values.reshape(heads, 2, -1, values.shape[1])
            values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
