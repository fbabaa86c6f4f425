"""Batches in, losses out.

Every loss is in nats per trainable token. What is backpropagated (`value`) may weigh noise rates as
training likes; the bound that is reported (`nll`) always carries the bound's own weights. The two
are different quantities, and only `bound.Continuous` and the bound weight make them equal.

Corruption is a pure function of the run's seed and a row's slot, so a loss does not depend on
workers, ranks, accumulation or resumption.
"""
