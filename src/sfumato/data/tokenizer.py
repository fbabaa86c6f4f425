"""Byte-level BPE of our own, tokenizers of others, and the ids that mean something special.

Text is never parsed for special tokens: somebody's story may say "<|mask|>", and that is nine
characters of text. Special ids enter token streams by number only.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.arguments import COUNT, FLAG, PATH, TEXT, shown
from sfumato.errors import ConfigError, DataError, TokenizerError
from sfumato.storage.files import Remedy, check_folder, foreign
from sfumato.storage.publish import published, recover

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, MASK = "<|pad|>", "<|bos|>", "<|eos|>", "<|mask|>"
SPECIAL = (PAD, BOS, EOS, MASK)
UNREADABLE = Remedy(
    TokenizerError,
    "give a folder with tokenizer.json or a name on the Hub, or load it yourself and pass the "
    "tokenizer",
)
SMALLEST = 256 + len(SPECIAL)  # every byte and the special tokens


@dataclass(frozen=True)
class SpecialIds:
    """The ids that text can never contain."""

    mask: int
    eos: int
    bos: int | None
    pad: int | None

    @property
    def all(self) -> tuple[int, ...]:
        """Those that the tokenizer has, in ascending order, each once."""
        return tuple(
            sorted({i for i in (self.mask, self.eos, self.bos, self.pad) if i is not None})
        )

    @property
    def filler(self) -> int:
        """What fills a row behind its text: pad, or eos where there is no pad."""
        return self.eos if self.pad is None else self.pad


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2
) -> "PreTrainedTokenizerFast":
    """Learn a byte-level BPE of at most `vocab_size` tokens, special tokens included.

    It is lossless on any text, and the same texts give the same tokenizer. Little text gives
    fewer tokens than asked for: a pair that occurs less than `min_frequency` times is not merged.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    vocab_size = COUNT.check("vocab_size", vocab_size)
    min_frequency = COUNT.check("min_frequency", min_frequency)
    if vocab_size < SMALLEST:
        raise ConfigError(
            f"vocab_size must be at least {SMALLEST} (256 bytes, {len(SPECIAL)} special tokens); "
            f"got {vocab_size}"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = _texts(texts)
    first = next(texts, None)
    if first is None:
        raise DataError(
            "no text to learn a tokenizer from: every document is blank; give some text"
        )
    try:
        backend.train_from_iterator(itertools.chain([first], texts), trainer)
    except UnicodeEncodeError as error:
        raise DataError(f"a text has half a character in it ({error}); give whole ones") from error
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        mask_token=MASK,
        clean_up_tokenization_spaces=False,
    )


def _texts(given: Iterable[str]) -> Iterator[str]:
    try:
        texts = None if isinstance(given, str | bytes) else iter(given)
    except TypeError:
        texts = None
    if texts is None:
        raise DataError(f"a tokenizer is learnt from a list of texts, got {shown(given)}")
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise DataError(f"text {number} must be text, got {shown(text)}")
        yield text


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


def encode(tokenizer: "PreTrainedTokenizerFast", texts: list[str]) -> list[list[int]]:
    """Token ids of each text: nothing is added, nothing is cut, nothing is read as special."""
    backend = fast_backend(tokenizer)
    # Set only where needed: a change while another thread encodes is an error in the library.
    if not backend.encode_special_tokens:
        backend.encode_special_tokens = True
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def fast_backend(tokenizer: "PreTrainedTokenizerFast") -> "Tokenizer":
    """What is inside a fast tokenizer: only these are taken."""
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(
            f"{type(tokenizer).__name__} is no fast tokenizer; expected one with a tokenizer.json"
        )
    return tokenizer.backend_tokenizer


def special_ids(tokenizer: "PreTrainedTokenizerFast") -> SpecialIds:
    """The special ids, after a check that no text can produce them."""
    fast_backend(tokenizer)  # raises
    name = tokenizer.name_or_path or type(tokenizer).__name__
    mask, eos = _role(tokenizer, "mask"), _role(tokenizer, "eos", "sep")
    bos, pad = _role(tokenizer, "bos", "cls"), _role(tokenizer, "pad")
    if mask is None:
        raise TokenizerError(
            f"tokenizer {name} has no mask token, which a diffusion model needs; "
            "add one: load_tokenizer(name, add_mask_token=True), or --add-mask-token"
        )
    if eos is None:
        raise TokenizerError(
            f"tokenizer {name} has no eos token, which ends every document; name one, such as "
            "<|endoftext|>: load_tokenizer(name, eos_token=...), or --eos-token"
        )
    if mask in (eos, bos, pad):
        raise TokenizerError(
            f"tokenizer {name} has id {mask} as mask token and for another purpose too; "
            "expected a mask token of its own"
        )
    ids = SpecialIds(mask=mask, eos=eos, bos=bos, pad=pad)
    spellings = [str(tokenizer.convert_ids_to_tokens(i)) for i in ids.all]
    for spelling, tokens in zip(spellings, encode(tokenizer, spellings), strict=True):
        if set(tokens) & set(ids.all):
            raise TokenizerError(
                f"tokenizer {name} reads the text {spelling!r} as a special token; "
                "expected one that can encode the spelling as plain text"
            )
    return ids


def _role(tokenizer: "PreTrainedTokenizerFast", *roles: str) -> int | None:
    """The first of the roles that is filled; BERT-likes have cls and sep for bos and eos."""
    ids = (getattr(tokenizer, f"{role}_token_id") for role in roles)
    return next((i for i in ids if i is not None), None)


def token_bytes(tokenizer: "PreTrainedTokenizerFast", size: int) -> list[bytes | None]:
    """The bytes that ids from 0 to size - 1 stand for, wherever they stand; None for special
    tokens and for ids without one.

    Only byte-level tokenizers have such bytes: others put spaces between tokens, or take them away.
    """
    parts = json.loads(fast_backend(tokenizer).to_str())["decoder"] or {}
    kinds = [parts.get("type"), *(part["type"] for part in parts.get("decoders", []))]
    if kinds not in (["ByteLevel"], ["Sequence", "ByteLevel"]):
        raise TokenizerError(
            f"a grammar needs a byte-level tokenizer, in which a token is always the same bytes; "
            f"this one decodes by {parts.get('type')}; use a model with a byte-level BPE"
        )
    byte = bytes_by_letter()
    spelt = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    words: list[bytes | None] = [None] * size
    for token, letters in enumerate(spelt):
        # what was added to the vocabulary is spelt as it is, if there is a letter that is no byte
        known = all(letter in byte for letter in letters)
        words[token] = bytes(map(byte.__getitem__, letters)) if known else letters.encode()
    for token, added in tokenizer.added_tokens_decoder.items():
        if added.special:
            words[token] = None
    return words


def bytes_by_letter() -> dict[str, int]:
    """Byte-level BPE writes a byte as the letter of its number if that can be seen (in Latin-1),
    and others in their order as the letters from 256 on (GPT-2)."""
    seen = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(b): b for b in seen} | {chr(256 + n): b for n, b in enumerate(others)}


def vocabulary_digest(tokenizer: "PreTrainedTokenizerFast", first: int | None = None) -> str:
    """How many tokens there are, and a hash of them in their order; or of the first ones alone.

    A model's config keeps it: which tokens its numbers mean.
    """
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    kept = [f"{number} {word}" for word, number in words][:first]
    made = hashlib.blake2b("\0".join(kept).encode("utf-8", "surrogatepass"), digest_size=8)
    return f"{len(kept)}-{made.hexdigest()}"


def fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """A hash of what decides which ids a text gets, and of the special ids' roles.

    Equal for a tokenizer and its saved copy. How a text is wrapped (post-processor) and cut or
    padded is left out, because `encode` uses neither.
    """
    parts = json.loads(fast_backend(tokenizer).to_str())
    model = parts["model"]
    # Older files join the two halves of a merge with a space.
    model["merges"] = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
    kept = {key: parts[key] for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    kept["roles"] = {
        role: getattr(tokenizer, f"{role}_token_id")
        for role in ("mask", "pad", "bos", "eos", "cls", "sep", "unk")
    }
    text = json.dumps(kept, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
