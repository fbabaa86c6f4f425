import pytest

from sfumato.errors import near, told

# what other libraries say, and what of it is told
MESSAGES = {
    "Couldn't instantiate the backend tokenizer from one of: \n(1) a `tokenizers` library file, \n"
    "(2) a slow tokenizer instance to convert. \nYou need to have sentencepiece installed.": (
        "Couldn't instantiate the backend tokenizer from one of: (1) a `tokenizers` library file, "
        "(2) a slow tokenizer instance to convert"
    ),
    "Can't load tokenizer for 'x'. If you were trying to load it from 'https://huggingface.co', "
    "make sure you don't have a folder. Otherwise, make sure 'x' is right.": (
        "Can't load tokenizer for 'x'"
    ),
    "CUDA error: out of memory\nCUDA kernel errors might be reported late.\nFor debugging consider "
    "passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA`.\n": (
        "CUDA error: out of memory. CUDA kernel errors might be reported late"
    ),
    "Outgoing traffic has been disabled. To enable it, set 'HF_HUB_OFFLINE=0'.": (
        "Outgoing traffic has been disabled"
    ),
    "expected 3 values, got 4": "expected 3 values, got 4",
    "not found": "not found",
    "": "ValueError",
    "'x'": "ValueError: 'x'",
}


@pytest.mark.parametrize("message", MESSAGES)
def test_other_libraries_are_told_in_whole_sentences_without_their_advice(message):
    assert told(ValueError(message)) == MESSAGES[message]


def test_the_system_is_told_by_its_own_words():
    assert told(PermissionError(13, "Permission denied", "x")) == "Permission denied"
    assert told(OSError("no route")) == "no route"


def test_a_long_message_ends_with_a_sentence():
    long = " ".join(f"This is sentence {number}." for number in range(100))
    said = told(ValueError(long))
    assert len(said) < 310
    assert long.startswith(said)
    assert said.rpartition(" ")[2].isdigit()


def test_near_names_are_offered():
    assert near("hiden", ["hidden", "layers"]) == "; did you mean hidden?"
    assert near("zzz", ["b", "a"]) == "; known: a, b"
