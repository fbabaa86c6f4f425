"""What a likelihood says of a batch: nats of every row, and their errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.estimates import Estimate, ratio


@dataclass(frozen=True)
class Likelihood:
    """-log p of every row, or an estimate of it or of a bound on it."""

    estimator: str  # the call that made it
    each: Tensor  # [B, L] float64 nats: what the token at each position adds
    noise: Tensor  # [B] float64, standard error of nats from the estimator's own draws
    freedom: Tensor  # [B] float64, the degrees of freedom of that error
    tokens: Tensor  # [B] int64, trainable tokens
    correct: float  # predicted tokens whose most likely value was the true one
    predicted: float

    @property
    def nats(self) -> Tensor:
        """[B] float64, of each row."""
        return self.each.sum(1)

    @classmethod
    def join(cls, parts: Sequence["Likelihood"]) -> "Likelihood":
        """Batches of one estimator as one."""
        width = max(part.each.shape[1] for part in parts)
        return cls(
            parts[0].estimator,
            torch.cat([F.pad(part.each, (0, width - part.each.shape[1])) for part in parts]),
            torch.cat([part.noise for part in parts]),
            torch.cat([part.freedom for part in parts]),
            torch.cat([part.tokens for part in parts]),
            sum(part.correct for part in parts),
            sum(part.predicted for part in parts),
        )

    def grouped(self, owner: Tensor) -> "Likelihood":
        """Rows that make up one text as one; owner [B] numbers the texts from 0."""
        count = int(owner.max()) + 1

        def total(values: Tensor) -> Tensor:
            return values.new_zeros((count, *values.shape[1:])).index_add_(0, owner, values)

        variance = self.noise.square()
        # Welch and Satterthwaite: of a sum of errors
        freedom = total(variance).square() / total(variance.square() / self.freedom)
        return replace(
            self,
            each=total(self.each),
            noise=total(variance).sqrt(),
            freedom=freedom.nan_to_num(math.inf),
            tokens=total(self.tokens),
        )

    @property
    def per_token(self) -> Estimate:
        """Nats per trainable token; its error is over rows and includes their noise.

        For independent rows; `grouped` makes the rows of one text one row.
        """
        return ratio(self.nats, self.tokens)

    @property
    def perplexity(self) -> Estimate:
        """exp(nats per trainable token)."""
        return self.per_token.exp()

    @property
    def per_row(self) -> list[Estimate]:
        """Nats per trainable token of each row by itself; the error is the estimator's noise."""
        counts = self.tokens.clamp_min(1)
        columns = (self.nats / counts, self.noise / counts, self.freedom)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [Estimate.of(value, error, round(freedom, 1)) for value, error, freedom in rows]

    def bits_per_byte(self, num_bytes: Tensor) -> Estimate:
        """num_bytes [B]: UTF-8 bytes that each row's trainable tokens spell."""
        return ratio(self.nats, num_bytes).scaled(1 / math.log(2))

    @property
    def accuracy(self) -> float:
        """Share of predictions whose most likely token was the true one."""
        return self.correct / self.predicted if self.predicted else math.nan
