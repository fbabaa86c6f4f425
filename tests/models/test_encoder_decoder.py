import pytest
import torch
from small_networks import VOCAB, WIDE, config, network, reader, tokens
from torch.testing import assert_close

from sfumato.errors import ConfigError
from sfumato.models import (
    EncoderDecoder,
    EncoderDecoderConfig,
    create_conditional_model,
)
from sfumato.types import ABSENT


def sources(rows: int = 2, length: int = 5, seed: int = 7) -> torch.Tensor:
    return tokens(rows, length, seed)


def logits(model, ids, source=None) -> torch.Tensor:
    with torch.no_grad():
        read = None if source is None else model.read(source)
        return model(ids, source=read).logits


@pytest.mark.parametrize("attention", ["full", "causal"])
def test_a_fresh_encoder_changes_nothing_at_all(attention):
    plain = network(attention=attention)
    torch.manual_seed(1)
    model = create_conditional_model(config(**WIDE), plain.config, VOCAB).eval()
    model.load_decoder(plain)
    assert torch.equal(logits(model, tokens(), sources()), logits(plain, tokens()))
    assert torch.equal(logits(model, tokens()), logits(plain, tokens()))


def test_every_output_depends_on_every_source_token():
    model, source = reader(), sources()
    before = logits(model, tokens(), source)
    for place in range(source.shape[1]):
        other = source.clone()
        other[:, place] = (other[:, place] + 1) % VOCAB
        assert ((logits(model, tokens(), other) - before).abs().amax(-1) > 1e-6).all()


def test_a_row_depends_neither_on_its_neighbours_source_nor_on_padding():
    model, ids = reader(), tokens(3)
    long = sources(3, 6)
    source = long.clone()
    source[0, 2:] = ABSENT  # padded on the right
    source[1, :3] = ABSENT  # and on the left
    together = logits(model, ids, source)
    for row, own in enumerate((long[:1, :2], long[1:2, 3:], long[2:])):
        assert_close(together[row : row + 1], logits(model, ids[row : row + 1], own))


def test_a_row_without_a_source_is_the_decoder_alone():
    model, source = reader(), sources()
    source[1] = ABSENT
    found, alone = logits(model, tokens(), source), logits(model, tokens())
    assert torch.equal(found[1], alone[1])
    assert not torch.allclose(found[0], alone[0])
    with torch.no_grad():
        dropped = model.read(sources()).dropped()
        assert torch.equal(model(tokens(), source=dropped).logits, alone)


def test_only_encoder_and_cross_attention_learn_while_the_decoder_is_frozen():
    model = reader()
    model.freeze_decoder()
    learning = {name for name, param in model.named_parameters() if param.requires_grad}
    plain = {name for name, _ in network().named_parameters()}
    assert learning == {name for name, _ in model.named_parameters()} - plain
    assert any(name.startswith("encoder.") for name in learning)
    model.unfreeze_all()
    assert all(param.requires_grad for param in model.parameters())


def test_weights_come_back_from_the_disk(tmp_path):
    model = reader(time_conditioned=True)
    model.save_pretrained(tmp_path)
    again = EncoderDecoder.from_pretrained(tmp_path)
    assert again.config.encoder["hidden_size"] == 24
    t = torch.tensor([0.2, 0.7])
    with torch.no_grad():
        wanted = model(tokens(), t=t, source=model.read(sources())).logits
        assert torch.equal(again(tokens(), t=t, source=again.read(sources())).logits, wanted)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_reach_the_encoder(checkpointed):
    found = []
    for _ in range(2):
        model = reader().train()
        if checkpointed and found:
            model.activation_checkpointing_enable()
        model(tokens(), source=model.read(sources())).logits.square().sum().backward()
        found.append({name: param.grad for name, param in model.named_parameters()})
    assert all(grad is not None and bool((grad != 0).any()) for grad in found[0].values())
    for name, grad in found[0].items():
        assert_close(found[1][name], grad, msg=name)


def test_create_conditional_model_takes_sizes_by_name():
    with torch.device("meta"):
        model = create_conditional_model("tiny", "small", 300, encoder_length=32)
    assert model.config.hidden_size == 384
    assert model.config.encoder["hidden_size"] == 256
    assert model.config.encoder["max_position_embeddings"] == 32
    assert model.encoder.embed.num_embeddings == model.config.vocab_size == 300


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="did you mean tiny"):
        create_conditional_model("tny", "small", 300)
    with pytest.raises(ConfigError, match="vocabulary of 12, but vocab_size is 300"):
        create_conditional_model(config(), "tiny", 300)
    with pytest.raises(TypeError, match="encoder_config_name"):
        create_conditional_model(encoder_config_name="tiny")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="unknown key"):
        EncoderDecoderConfig(encoder={"heads": 4})
    with pytest.raises(ConfigError, match=r"do not fit the decoder, for instance embed\.weight"):
        reader().load_decoder(network(hidden_size=24))
    with pytest.raises(ConfigError, match=r"do not fit the decoder, for instance blocks\.1"):
        reader().load_decoder(network(num_hidden_layers=1))
    with pytest.raises(ConfigError, match="do not fit the encoder"):
        reader().load_encoder(network())
    with pytest.raises(ConfigError, match="40 tokens of source, but the encoder was built for 32"):
        reader().read(sources(1, 40))


def test_an_encoder_may_start_from_a_denoiser():
    model, plain = reader(), network(3, **WIDE)
    model.load_encoder(plain)
    with torch.no_grad():
        states, alone = (
            model.encoder(tokens()),
            plain.hidden(tokens(), None, None, None, plain.attend, None, None)[0],
        )
    assert_close(states, alone)
