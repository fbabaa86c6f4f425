"""The ids that mean something special, and how new tokenizers spell them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfumato.data.tokenizer import encode, fast_backend
from sfumato.errors import TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, MASK = "<|pad|>", "<|bos|>", "<|eos|>", "<|mask|>"
SPECIAL = (PAD, BOS, EOS, MASK)


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
