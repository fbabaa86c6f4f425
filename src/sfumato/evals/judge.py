"""Texts as a causal language model sees them: generative perplexity and bits per byte."""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sfumato.errors import CheckpointError, ConfigError, MissingExtra
from sfumato.estimates import Estimate, ratio
from sfumato.evals.weights import find_weights
from sfumato.storage.files import Remedy, check_folder, foreign
from sfumato.storage.hub import bars
from sfumato.storage.tensors import check_finite, fingerprint


@dataclass(frozen=True)
class Verdict:
    """What a judge found, row i about text i; an empty text has no tokens and counts nowhere."""

    nats: Tensor  # [N] float64, -log p(text)
    tokens: Tensor  # [N] int64, scored tokens
    bytes: Tensor  # [N] int64, UTF-8 bytes that those tokens spell
    truncated: int  # texts of which only the start was scored

    @property
    def perplexity(self) -> Estimate:
        """exp(nats per token), with its error over texts."""
        return ratio(self.nats, self.tokens).exp()

    @property
    def bits_per_byte(self) -> Estimate:
        """Comparable between judges with different tokenizers, as perplexity is not."""
        return ratio(self.nats, self.bytes).scaled(1 / math.log(2))


@dataclass(frozen=True)
class Judge:
    """A causal language model that scores texts: every token, given those before it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str  # as the user gave it
    fingerprint: str  # SHA-256 of the weights
    start: int  # token before every text, not scored
    limit: int  # tokens of a text that are scored
    batch_tokens: int  # tokens in one forward pass, padding included

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        limit: int | None = None,
        batch_tokens: int = 1024,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "Judge":
        """A Hugging Face folder, a .gguf file or a folder with one, or a name on the hub.

        `limit`: tokens of a text to score, by default 1024, or what fits the model if that is less.
        """
        weights = find_weights(path)
        options: dict[str, Any] = {"use_safetensors": True}
        if weights[0].suffix == ".gguf":
            if importlib.util.find_spec("gguf") is None:
                raise MissingExtra("gguf", "gguf", f"reading {weights[0].name}")
            options = {"gguf_file": weights[0].name}
        remedy = Remedy(CheckpointError, "give the folder of a causal language model")
        check_folder(weights[0].parent, remedy)
        with foreign(f"{path} is not a causal language model", remedy), bars(False):
            tokenizer = AutoTokenizer.from_pretrained(weights[0].parent, **options)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                weights[0].parent, dtype=dtype, output_loading_info=True, **options
            )
        model, report = loaded
        if report["missing_keys"]:
            absent = ", ".join(sorted(report["missing_keys"])[:3])
            raise CheckpointError(f"{path} lacks weights of a causal language model: {absent}")
        start = tokenizer.bos_token_id
        start = tokenizer.eos_token_id if start is None else start
        if start is None:
            raise CheckpointError(
                f"the tokenizer of {path} has neither a bos nor an eos token to stand before a "
                "text; set one in its tokenizer_config.json"
            )
        check_finite(model.named_parameters(), path)
        model = model.to(device).eval().requires_grad_(False)
        _assert_causal(model, str(path))
        return cls(
            model=model,
            tokenizer=tokenizer,
            name=str(path),
            fingerprint=fingerprint(weights),
            start=start,
            limit=_limit(limit, model),
            batch_tokens=batch_tokens,
        )

    def __call__(self, texts: Sequence[str]) -> Verdict:
        """Score texts; the result does not depend on how they are batched, up to rounding."""
        ids, ends = self._encode(texts)
        lengths = [min(len(row), self.limit) for row in ids]
        nats = torch.zeros(len(texts), dtype=torch.float64)
        for rows in self._batches(lengths):
            nats[rows] = self._nats([ids[row][: self.limit] for row in rows])
        covered = [
            text if len(end) <= self.limit else text[: end[self.limit - 1]]
            for text, end in zip(texts, ends, strict=True)
        ]
        return Verdict(
            nats=nats,
            tokens=torch.tensor(lengths),
            bytes=torch.tensor([len(text.encode()) if text.strip() else 0 for text in covered]),
            truncated=sum(len(row) > self.limit for row in ids),
        )

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text, whole, without special tokens; their spelling is read as text."""
        return self._encode(texts)[0]

    def settings(self) -> dict[str, object]:
        """What a result must name to be compared with another."""
        return {
            "model": self.name,
            "sha256": self.fingerprint,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "start_token": self.tokenizer.convert_ids_to_tokens(self.start),
            "limit_tokens": self.limit,
        }

    def _encode(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Ids, and for every token the place in the text where it ends; an empty text has none."""
        ids, ends = [], []
        for text in texts:
            encoded = self.tokenizer(
                text if text.strip() else "",
                add_special_tokens=False,
                split_special_tokens=True,
                return_offsets_mapping=True,
            )
            ids.append(encoded["input_ids"])
            ends.append([end for _, end in encoded["offset_mapping"]])
        return ids, ends

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Rows of similar length, longest first, `batch_tokens` at a time."""
        rows = sorted((row for row, n in enumerate(lengths) if n), key=lambda row: -lengths[row])
        while rows:
            size = max(1, self.batch_tokens // (lengths[rows[0]] + 1))
            yield rows[:size]
            rows = rows[size:]

    @torch.inference_mode()
    def _nats(self, texts: list[list[int]]) -> Tensor:
        """[B] float64: -log p of rows padded on the right, where a causal model never looks."""
        longest = max(len(ids) for ids in texts)
        padded = [ids + [-100] * (longest - len(ids)) for ids in texts]
        targets = torch.tensor(padded, device=self.model.device)
        tokens = torch.cat([torch.full_like(targets[:, :1], self.start), targets[:, :-1]], dim=1)
        attend = tokens >= 0
        logits = self.model(
            tokens.where(attend, self.start), attention_mask=attend.long(), use_cache=False
        ).logits
        nats = cross_entropy(logits.transpose(1, 2).float(), targets, reduction="none")
        return nats.double().sum(1).cpu()


def _limit(limit: int | None, model: PreTrainedModel) -> int:
    """Tokens to score, checked against the positions that the model has, one for the start."""
    config = model.config.get_text_config()
    room = getattr(config, "max_position_embeddings", math.inf)  # state-space models have none
    if limit is None:
        return int(min(1024, room - 1))
    if not 1 <= limit < room:
        raise ConfigError(f"limit must be from 1 to {room - 1} tokens for this judge, got {limit}")
    return limit


@torch.inference_mode()
def _assert_causal(model: PreTrainedModel, name: str) -> None:
    """Masked models load as causal ones too, and then see the token that they should predict."""
    tokens = torch.tensor([[0, 1], [0, 2]], device=model.device)
    before, at = model(tokens, use_cache=False).logits.float().diff(dim=0).abs().amax(-1)[0]
    if before > 1e-3 * at:
        raise CheckpointError(f"{name} reads tokens ahead; a judge must be a causal language model")
