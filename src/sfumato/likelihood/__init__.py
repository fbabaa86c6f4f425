"""How probable texts are: bounds, what is exact for one way of writing, and teacher forcing."""

from sfumato.likelihood.bounds import bound, continuous, discrete, exact_k
from sfumato.likelihood.exact import any_order, by_decoder, by_order, left_to_right
from sfumato.likelihood.result import Likelihood
from sfumato.likelihood.teacher_forcing import can_teacher_force, teacher_forced

__all__ = [
    "Likelihood",
    "any_order",
    "bound",
    "by_decoder",
    "by_order",
    "can_teacher_force",
    "continuous",
    "discrete",
    "exact_k",
    "left_to_right",
    "teacher_forced",
]
