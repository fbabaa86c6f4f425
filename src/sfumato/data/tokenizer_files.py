"""Tokenizers in folders and on the Hub: loaded, mended where a role is missing, and saved."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.arguments import FLAG, PATH, TEXT
from sfumato.data.special_tokens import MASK
from sfumato.data.tokenizer import encode, fast_backend
from sfumato.errors import TokenizerError
from sfumato.storage.files import Remedy, check_folder, foreign
from sfumato.storage.publish import published, recover

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNREADABLE = Remedy(
    TokenizerError,
    "give a folder with tokenizer.json or a name on the Hub, or load it yourself and pass the "
    "tokenizer",
)


def load_tokenizer(
    name_or_path: str | Path, *, add_mask_token: bool = False, eos_token: str | None = None
) -> "PreTrainedTokenizerFast":
    """Load a tokenizer by folder or by name on the Hugging Face Hub.

    `add_mask_token` mends a tokenizer that has none: a special token of its own whose spelling
    says "mask" gets the role, else `<|mask|>` is added with the next free id. `eos_token` gives
    the role of ending a document in one that says nothing of it, as a bare tokenizer.json does.
    """
    from transformers import AutoTokenizer

    name = str(PATH.check("a tokenizer", name_or_path))
    add_mask_token = FLAG.check("add_mask_token", add_mask_token)
    eos_token = None if eos_token is None else TEXT.check("eos_token", eos_token)
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_path and not Path(name).expanduser().exists():
        raise TokenizerError(f"no tokenizer folder at {name}; give a folder or a name on the Hub")
    folder, where = Path(name).expanduser(), f"cannot load a tokenizer from {name}"
    recover(folder, TokenizerError)
    if folder.is_dir():
        check_folder(folder, UNREADABLE)
    # The library and the network below it fail in more ways than can be listed.
    with foreign(where, UNREADABLE):
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder) if looks_like_path else name, trust_remote_code=False
            )
        except Exception as error:
            if "trust_remote_code" not in str(error):
                raise
            said = "it needs its own Python code, never run here"
            raise UNREADABLE.fault(where, said) from error
        if tokenizer.is_fast:  # what damage may have left of it
            special = (tokenizer.added_tokens_decoder, tokenizer.special_tokens_map)
            encode(tokenizer, ["".join(map(str, special))])
    if add_mask_token and tokenizer.mask_token_id is None:
        own = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        own = [spelling for spelling in own if "mask" in spelling.lower()]
        tokenizer.add_special_tokens({"mask_token": own[0] if len(own) == 1 else MASK})
    if eos_token is not None and eos_token != tokenizer.eos_token:
        if tokenizer.eos_token is not None:
            raise TokenizerError(
                f"tokenizer {name} ends documents with {tokenizer.eos_token}; leave {eos_token} out"
            )
        tokenizer.add_special_tokens({"eos_token": eos_token})
    return tokenizer


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: str | Path) -> None:
    """Put the tokenizer's files into a folder, all of them or none."""
    fast_backend(tokenizer)  # raises
    with published(Path(PATH.check("folder", folder)).expanduser(), TokenizerError) as new:
        write_tokenizer(tokenizer, new)


def write_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: str | Path) -> None:
    """The tokenizer's files such that transformers 4 and 5, and converters, can load them."""
    tokenizer.save_pretrained(str(folder))
    path = Path(folder) / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # transformers 5 writes the name of a class, and the form of a list, that nothing else reads.
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    for passing in ("is_local", "local_files_only"):  # how it was loaded, no matter of its own
        config.pop(passing, None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
