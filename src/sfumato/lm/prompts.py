"""From text that a user gives to tokens on a canvas."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.data.special_tokens import SpecialIds
from sfumato.data.token_bytes import token_bytes
from sfumato.data.tokenizer import encode
from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.request import RowPart
from sfumato.errors import ConfigError, DataError
from sfumato.grammar.automaton import Automaton
from sfumato.lm.pages import PageReader
from sfumato.types import ABSENT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GAP = "____"  # four or more underscores in a text are a gap to fill


@dataclass(frozen=True)
class Prompts:
    """How text that a user gives is laid out in tokens."""

    tokenizer: "PreTrainedTokenizerFast"
    special: SpecialIds
    reader: PageReader
    vocab_size: int  # of the model

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, with none added."""
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"character {error.start + 1} of the text is half of one (it came from bytes "
                    "that are not UTF-8); give text in UTF-8"
                ) from None
        return encode(self.tokenizer, list(texts))

    def opening(self, ids: list[int]) -> list[int]:
        """A text starts with bos where the tokenizer has one."""
        return ids if self.special.bos is None else [self.special.bos, *ids]

    def sources(self, texts: Sequence[str]) -> Tensor:
        """Tokens of sources as prepared data have them, bos to eos: [B, S], padded on the left."""
        whole = [[*self.opening(ids), self.special.eos] for ids in self.encode(texts)]
        width = max(map(len, whole))
        return torch.tensor([[ABSENT] * (width - len(ids)) + ids for ids in whole])

    def stem(self, text: str) -> str:
        """A text without the space at its end, which is left to the token that follows.

        Most tokenizers write it together with the next word, so a model has hardly ever seen it
        alone. Within a grammar it is shown with the given text all the same: new text is a match.
        """
        return text[:-1] if text.endswith(" ") and bool(self.spaced.any()) else text

    @cached_property
    def words(self) -> tuple[bytes | None, ...]:
        """The bytes of each token, by which a grammar knows it."""
        return tuple(token_bytes(self.tokenizer, self.vocab_size))

    def automaton(self, options: GenerationOptions, never: frozenset[int]) -> Automaton | None:
        """Of the grammar, if there is one.

        Behind the end of a text comes padding, where the model has learnt it, or anything.
        """
        grammar = options.grammar()
        if grammar is None:
            return None
        return grammar.over(
            self.words,
            never={*never, *options.suppress},
            end=self.special.eos,
            after=self.reader.ends if options.layout == "padded" else None,
        )

    @cached_property
    def spaced(self) -> Tensor:
        """[V] bool: tokens that begin with a space where they follow a word."""
        word = self.encode(["a"])[0][:1]
        if not self.reader.decode(word).strip():  # it knows no such letter: any token with text
            every = ([token] for token in range(len(self.tokenizer)))
            word = next((own for own in every if self.reader.decode(own).strip()), word)
        lead = self.reader.decode(word) + " "
        spaced = torch.zeros(self.vocab_size, dtype=torch.bool)
        for token in range(len(self.tokenizer)):
            spaced[token] = self.reader.decode([*word, token]).startswith(lead)
        return spaced

    def gapped(self, text: str, free: bool) -> "Gapped":
        """A text at whose gaps something is written; `free`: within no grammar."""
        given = re.split("_{4,}", text)
        if len(given) < 2:
            raise ConfigError(f"no gap in the text: mark it with {GAP}")
        stems = [*map(self.stem, given[:-1]), given[-1]]
        first, *others = self.encode(stems)
        ids = [self.opening(first), *others]
        ids[-1] = [*ids[-1], self.special.eos]
        spaced = tuple(stem != whole for stem, whole in zip(stems, given, strict=True))
        return Gapped(tuple(stems if free else given), tuple(map(tuple, ids)), spaced[:-1])


@dataclass(frozen=True)
class Gapped:
    """What stands before, between and behind the gaps of a text."""

    shown: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]  # from the text's beginning to its end token
    spaced: tuple[bool, ...]  # of each gap: its first token begins with a space

    @property
    def gaps(self) -> int:
        return len(self.spaced)

    @property
    def count(self) -> int:
        """Tokens, without the gaps'."""
        return sum(map(len, self.ids))

    def laid(self, lengths: Sequence[int]) -> tuple[tuple[RowPart, ...], list[int], list[int]]:
        """With so many tokens a gap: its parts; its tokens, -1 in the gaps; gaps with a space."""
        parts: list[RowPart] = [self.shown[0]]
        ids, places = list(self.ids[0]), []
        for number, length in enumerate(lengths):
            places += [len(ids)] * self.spaced[number]
            parts += [slice(len(ids), len(ids) + length), self.shown[number + 1]]
            ids += [*[-1] * length, *self.ids[number + 1]]
        return tuple(parts), ids, places
