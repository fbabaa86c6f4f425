"""What of a module is sharded by itself: networks, and their repeated layers."""

from torch import nn
from transformers import PreTrainedModel


def networks_in(module: nn.Module) -> list[PreTrainedModel]:
    """The networks in a module, outer ones first."""
    return [each for each in module.modules() if isinstance(each, PreTrainedModel)]


def layers(model: PreTrainedModel) -> list[nn.Module]:
    """The repeated parts of a network, which are sharded one by one."""
    kinds = model._no_split_modules or ()
    return [module for module in model.modules() if type(module).__name__ in kinds]
