"""What a calibration is asked for: how much may be lost, how surely, and what is tried."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from sfumato.arguments import Amount, Count, Kind, Seed, check_fields
from sfumato.errors import ConfigError
from sfumato.evals.risk import TESTS
from sfumato.evals.settings import Wanted

Tolerance = Annotated[float, Field(gt=0, title="above 0 nats a token")]
Confidence = Annotated[float, Field(ge=0.5, lt=1, description="use 0.9")]


@dataclass(frozen=True)
class CalibrateOptions:
    """What is compared, on how much text, and how sure the answer has to be."""

    tolerance: Tolerance = 0.05  # nats a token; 0.05 is 5 % of perplexity
    confidence: Confidence = 0.9  # that what is called safe is within it
    rows: Amount = 128  # held-out texts
    num_texts: Count = 4  # written with every setting, to time and to judge them
    step: tuple[str, ...] = ()  # these as in `Wanted`
    num_steps: tuple[Count, ...] = ()
    block: tuple[Count, ...] = ()
    reference: str = "probability"
    test: str = "betting"
    judge: str | None = None  # a causal language model by path
    seed: Seed = 0

    def __post_init__(self):
        check_fields(self)
        if self.test not in TESTS:
            raise ConfigError(f"test must be one of {', '.join(TESTS)}, got '{self.test}'")
        self.wanted()  # its own checks

    def wanted(self) -> Wanted:
        return Wanted(self.step, self.num_steps, self.block, self.reference)


OPTIONS = Kind(CalibrateOptions)
