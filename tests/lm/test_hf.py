import pytest
from tiny_lm import SENTENCES, tiny_lm
from transformers import pipeline

from sfumato.errors import ConfigError
from sfumato.lm.hf import TASK, TextDiffusionPipeline, register
from sfumato.lm.model import DiffusionLM


@pytest.fixture(scope="module")
def pipe(taught_folder):
    register()
    register()  # a second time changes nothing
    return pipeline(TASK, model=str(taught_folder), device="cpu")


def test_it_writes_what_the_model_writes(pipe, taught_folder):
    assert isinstance(pipe, TextDiffusionPipeline)
    lm = DiffusionLM.from_pretrained(taught_folder)
    assert pipe.lm.options == lm.options
    options = {"num_samples": 2, "seed": 3, "num_steps": 9}
    expected = lm.generate("The fox", **options).full_texts
    assert [one["generated_text"] for one in pipe("The fox", **options)] == list(expected)


def test_several_prompts_are_written_one_after_another(pipe):
    options = {"step": "margin", "temperature": 0}
    written = pipe(["The fox met", "A caf\u00e9"], **options)
    assert [one[0]["generated_text"] for one in written] == [SENTENCES[1], SENTENCES[3]]


def test_a_model_that_is_already_loaded_is_taken(pipe):
    lm = tiny_lm()
    made = pipeline(TASK, model=lm.model, tokenizer=lm.tokenizer, device="cpu")
    assert made("The", length=3, seed=0)[0]["generated_text"].startswith("The")


def test_unknown_options_are_refused(pipe):
    with pytest.raises(ConfigError, match="unknown option 'max_tokens'"):
        pipe("The", max_tokens=3)
