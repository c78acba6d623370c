import json
from pathlib import Path
from typing import Any

import pytest
import torch
from offramp_compression import packages, pretrained
from offramp_compression.architectures.minilm import (
    BertEncoder,
    BertSizes,
    SentenceEncoder,
    load_bert,
    minilm,
    minilm_encoder,
)
from offramp_compression.errors import ModelError
from torch import Tensor

TINY: dict[str, Any] = {"vocabulary": 50, "width": 16, "layers": 2, "heads": 4, "inner": 32, "positions": 24}
SIZES = BertSizes(vocabulary=50, width=16, layers=1, heads=4, inner=32, positions=24)
# The parameters of a one-layer BERT as Hugging Face's checkpoints name them, and their shapes at the sizes above.
CHECKPOINT = {
    "embeddings.word_embeddings.weight": (50, 16),
    "embeddings.position_embeddings.weight": (24, 16),
    "embeddings.token_type_embeddings.weight": (2, 16),
    "embeddings.LayerNorm.weight": (16,),
    "embeddings.LayerNorm.bias": (16,),
    "encoder.layer.0.attention.self.query.weight": (16, 16),
    "encoder.layer.0.attention.self.query.bias": (16,),
    "encoder.layer.0.attention.self.key.weight": (16, 16),
    "encoder.layer.0.attention.self.key.bias": (16,),
    "encoder.layer.0.attention.self.value.weight": (16, 16),
    "encoder.layer.0.attention.self.value.bias": (16,),
    "encoder.layer.0.attention.output.dense.weight": (16, 16),
    "encoder.layer.0.attention.output.dense.bias": (16,),
    "encoder.layer.0.attention.output.LayerNorm.weight": (16,),
    "encoder.layer.0.attention.output.LayerNorm.bias": (16,),
    "encoder.layer.0.intermediate.dense.weight": (32, 16),
    "encoder.layer.0.intermediate.dense.bias": (32,),
    "encoder.layer.0.output.dense.weight": (16, 32),
    "encoder.layer.0.output.dense.bias": (16,),
    "encoder.layer.0.output.LayerNorm.weight": (16,),
    "encoder.layer.0.output.LayerNorm.bias": (16,),
}


def tiny_encoder() -> SentenceEncoder:
    torch.manual_seed(0)
    return minilm_encoder(**TINY).eval()


def tokens(length: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(length))
    return ids, torch.ones_like(ids)


def checkpoint() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in CHECKPOINT.items()}


def test_a_hugging_face_checkpoint_fills_every_parameter_of_the_encoder() -> None:
    weights = checkpoint()
    encoder = BertEncoder(SIZES)
    load_bert(encoder, {**weights, "pooler.dense.weight": torch.zeros(16, 16)})
    assert len(encoder.state_dict()) == len(weights)
    for tensor in encoder.state_dict().values():
        assert any(tensor.shape == source.shape and torch.equal(tensor, source) for source in weights.values())
    found = encoder.state_dict()
    assert torch.equal(found["layers.0.attention.output.bias"], weights["encoder.layer.0.attention.output.dense.bias"])
    assert torch.equal(found["layers.0.norm.bias"], weights["encoder.layer.0.output.LayerNorm.bias"])
    assert torch.equal(
        found["layers.0.attention_norm.bias"], weights["encoder.layer.0.attention.output.LayerNorm.bias"]
    )


def test_a_checkpoint_of_a_model_with_a_task_head_fills_it_as_well() -> None:
    encoder = BertEncoder(SIZES)
    load_bert(encoder, {f"bert.{name}": tensor for name, tensor in checkpoint().items()})
    assert torch.equal(encoder.embeddings.norm.bias, checkpoint()["embeddings.LayerNorm.bias"])


def test_weights_that_are_not_of_this_encoder_are_refused_with_what_would_fit() -> None:
    two_layers = BertEncoder(BertSizes(vocabulary=50, width=16, layers=2, heads=4, inner=32, positions=24))
    with pytest.raises(ModelError, match=r"no \"encoder.layer.1.*2 layers"):
        load_bert(two_layers, checkpoint())
    wider = BertEncoder(BertSizes(vocabulary=51, width=16, layers=1, heads=4, inner=32, positions=24))
    with pytest.raises(ModelError, match=r"is \[50, 16\]; the encoder was built for \[51, 16\]"):
        load_bert(wider, checkpoint())


def test_padding_does_not_change_an_embedding() -> None:
    encoder = tiny_encoder()
    ids, mask = tokens(6)
    padded = torch.nn.functional.pad(ids, (0, 5), value=3), torch.nn.functional.pad(mask, (0, 5))
    assert torch.allclose(encoder(ids, mask), encoder(*padded), atol=1e-6)


def test_embeddings_have_unit_length_unless_that_is_turned_off() -> None:
    ids, mask = tokens(6)
    assert torch.allclose(tiny_encoder()(ids, mask).norm(dim=1), torch.ones(2))
    torch.manual_seed(0)
    raw = minilm_encoder(**TINY, normalize=False).eval()(ids, mask)
    assert not torch.allclose(raw.norm(dim=1), torch.ones(2))
    assert torch.allclose(torch.nn.functional.normalize(raw), tiny_encoder()(ids, mask), atol=1e-6)


def test_a_row_without_any_token_is_finite() -> None:
    ids, mask = tokens(6)
    mask[1] = 0
    assert torch.isfinite(tiny_encoder()(ids, mask)).all()


def test_token_types_are_type_zero_unless_they_are_given() -> None:
    encoder = tiny_encoder().encoder
    ids, mask = tokens(6)
    assert torch.allclose(encoder(ids, mask), encoder(ids, mask, torch.zeros_like(ids)), atol=1e-6)
    assert not torch.allclose(encoder(ids, mask), encoder(ids, mask, torch.ones_like(ids)), atol=1e-3)


def test_it_exports_with_a_dynamic_batch_and_a_dynamic_length() -> None:
    classifier = minilm(3, **TINY).eval()
    dims = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=24)}
    program = torch.export.export(
        classifier, tokens(5), dynamic_shapes={"input_ids": dims, "attention_mask": dims}, strict=False
    )
    for length, batch in ((3, 1), (24, 7)):
        inputs = tokens(length, batch)
        assert torch.equal(program.module()(*inputs), classifier(*inputs))


def test_a_width_that_the_attention_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ModelError, match="width of 16 cannot be divided over 3 attention heads"):
        minilm(2, vocabulary=50, width=16, layers=1, heads=3, inner=32, positions=24)


@pytest.fixture
def _pretrained_weights() -> None:
    if packages.cached(pretrained.MINILM_L6) is None:
        pytest.skip("MiniLM's weights are not in the cache")


@pytest.mark.usefixtures("_pretrained_weights")
def test_pretrained_embeddings_are_those_of_the_reference_implementation() -> None:
    """Of transformers 4.57.1's BertModel with mean pooling, on the same weights and tokens."""
    reference = json.loads((Path(__file__).parent / "minilm_reference.json").read_text())
    encoder = minilm_encoder().eval()
    pretrained.load_minilm(encoder.encoder)
    with torch.inference_mode():
        found = encoder(torch.tensor(reference["input_ids"]), torch.tensor(reference["attention_mask"]))
    assert torch.allclose(found[:, :6], torch.tensor(reference["first_six"]), atol=1e-6)
    assert torch.allclose(found @ found.T, torch.tensor(reference["cosines"]), atol=1e-6)


@pytest.mark.usefixtures("_pretrained_weights")
def test_the_pretrained_tokenizer_makes_the_tokens_of_the_reference() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    reference = json.loads((Path(__file__).parent / "minilm_reference.json").read_text())
    tokenizer = tokenizers.Tokenizer.from_str(pretrained.minilm_tokenizer_file().decode())
    tokenizer.enable_padding()
    assert [found.ids for found in tokenizer.encode_batch(reference["texts"])] == reference["input_ids"]
