import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from offramp_adapters.zero_shot import vectors as served
from offramp_compression.blueprint import Blueprint
from offramp_compression.data.text import TextData
from offramp_compression.errors import DataError
from offramp_compression.export.publish import Target
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance
from offramp_compression.zero_shot import scores
from offramp_compression.zero_shot.classifier import ZeroShotClassifier, aligned, calibrated
from offramp_compression.zero_shot.describe import described, read_labels
from offramp_compression.zero_shot.encoder import INPUTS, OUTPUT, TextEncoder
from offramp_compression.zero_shot.examples import apart, some
from offramp_compression.zero_shot.export import export_zero_shot
from offramp_compression.zero_shot.settings import ZeroShotSettings
from offramp_server.repository.reader import read_model
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ("[PAD]", "[UNK]", "a", "text", "about", "money", "sport", "wins", "losses", "the", "bank", "team", ".")
SETTINGS = ZeroShotSettings(("money", "sport"), templates=("{}", "a text about {}."))
TEXTS = ("the bank wins", "the team wins", "losses", "money money money about the bank", "sport .")


def tiny_encoder() -> TextEncoder:
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    blueprint = Blueprint(
        "minilm_encoder",
        {"vocabulary": len(WORDS), "width": 16, "layers": 2, "heads": 4, "inner": 32, "positions": 16},
    )
    torch.manual_seed(0)
    network = Network(blueprint.build().eval(), blueprint, (), INPUTS, (OUTPUT,), Provenance("test"))
    return TextEncoder(network, tokenizer, 12)


def test_a_text_has_the_same_vector_alone_and_among_longer_ones() -> None:
    encoder = tiny_encoder()
    together = encoder(TEXTS)
    assert together.shape == (len(TEXTS), 16)
    assert np.allclose(np.linalg.norm(together, axis=1), 1)
    for place, text in enumerate(TEXTS):
        assert np.allclose(encoder([text])[0], together[place], atol=1e-5)


def test_many_texts_keep_their_order() -> None:
    encoder = tiny_encoder()
    many = [TEXTS[place % len(TEXTS)] for place in range(150)]
    assert np.allclose(encoder(many), np.tile(encoder(TEXTS), (30, 1)), atol=1e-5)


def test_a_class_is_the_mean_of_its_prompts_unit_vectors() -> None:
    encoder = tiny_encoder()
    classes = ZeroShotClassifier(encoder, SETTINGS).classes()
    mean = (encoder(["sport"])[0] + encoder(["a text about sport."])[0]) / 2
    assert np.allclose(classes[1], mean / np.linalg.norm(mean), atol=1e-5)


def test_a_description_is_read_in_the_labels_place() -> None:
    described_ = replace(SETTINGS, descriptions=("the bank", "the team"))
    assert described_.prompts() == ["the bank", "a text about the bank.", "the team", "a text about the team."]


def test_logits_are_cosines_over_the_temperature() -> None:
    encoder = tiny_encoder()
    classifier = ZeroShotClassifier(encoder, replace(SETTINGS, temperature=0.2))
    cosines = encoder(TEXTS) @ classifier.classes().T
    assert np.allclose(classifier.logits(TEXTS), cosines / 0.2, atol=1e-5)


def test_the_server_computes_the_same_scores() -> None:
    random = np.random.default_rng(0)
    prompts, texts = random.normal(size=(6, 8)), random.normal(size=(5, 8))
    ours = scores.logits(scores.unit(texts), scores.class_vectors(prompts, 2), 0.07)
    theirs = served.logits(served.unit(texts), served.class_vectors(prompts, 2), 0.07)
    assert np.array_equal(ours, theirs)


@dataclass(frozen=True)
class Sure:
    """Takes every text for the class that it begins with, by a cosine of 0.6 to 0.8."""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return scores.unit(np.array([[0.8, 0.6] if text.startswith("m") else [0.6, 0.8] for text in texts]))


def test_calibration_makes_a_classifier_as_sure_as_it_is_right() -> None:
    texts = tuple("money" if place % 2 else "sport" for place in range(1000))
    labels = np.array([place % 2 == 0 for place in range(1000)], dtype=np.int64)
    labels[:200] = 1 - labels[:200]
    examples = TextData(texts, labels, ("money", "sport"))
    classifier = ZeroShotClassifier(Sure(), ZeroShotSettings(("money", "sport")))  # type: ignore[arg-type]
    fitted = calibrated(classifier, examples)
    logits = fitted.logits(texts)
    assert np.array_equal(logits.argmax(1), classifier.logits(texts).argmax(1))
    confidence = np.exp(logits.max(1)) / np.exp(logits).sum(1)
    assert np.allclose(confidence, 0.8, atol=0.01)


def test_a_few_examples_that_are_all_right_do_not_make_a_classifier_certain() -> None:
    texts = tuple("money" if place % 2 else "sport" for place in range(20))
    examples = TextData(texts, np.array([place % 2 == 0 for place in range(20)], dtype=np.int64), ("money", "sport"))
    classifier = ZeroShotClassifier(Sure(), ZeroShotSettings(("money", "sport"), temperature=0.2))  # type: ignore[arg-type]
    logits = calibrated(classifier, examples).logits(texts)
    confidence = np.exp(logits.max(1)) / np.exp(logits).sum(1)
    assert (confidence > 0.75).all()
    assert (confidence < 0.99).all()


def test_examples_may_have_their_classes_in_another_order() -> None:
    examples = TextData(("x", "y"), np.array([0, 1]), ("sport", "money"))
    assert aligned(examples, ("money", "sport")).labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r'class "sprt" that is no label; did you mean "sport"'):
        aligned(TextData(("x",), np.array([0]), ("sprt",)), ("money", "sport"))


def test_the_written_model_is_one_that_the_server_reads_as_a_zero_shot_classifier(tmp_path: Path) -> None:
    classifier = ZeroShotClassifier(tiny_encoder(), replace(SETTINGS, descriptions=("the bank", "the team")))
    exported = export_zero_shot(classifier, TEXTS, Target(tmp_path, "topics", "onnx"))
    assert (exported.folder / "tokenizer.json").is_file()
    (spec,) = read_model(tmp_path, "topics")
    head = spec.zero_shot
    assert head is not None
    assert (head.labels, head.descriptions) == (("money", "sport"), ("the bank", "the team"))
    assert (head.templates, head.temperature, head.embedding) == (SETTINGS.templates, 0.05, "embedding")


def test_the_written_model_may_be_a_program_and_gets_a_batch_that_holds_its_templates(tmp_path: Path) -> None:
    many = replace(SETTINGS, templates=tuple(f"{place} {{}}" for place in range(20)))
    export_zero_shot(ZeroShotClassifier(tiny_encoder(), many), TEXTS, Target(tmp_path, "topics", "pt2"))
    assert tomllib.loads((tmp_path / "topics" / "model.toml").read_text())["max_batch_size"] == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("one",)}, "at least two, all different"),
        ({"labels": ("one", "one")}, "at least two, all different"),
        ({"labels": ("one", " ")}, "none empty"),
        ({"descriptions": ("only one",)}, "1 descriptions for 2 labels"),
        ({"templates": ("no place",)}, 'with "{}" once'),
        ({"templates": ()}, "at least one"),
        ({"temperature": 0.0}, "a number above 0"),
    ],
)
def test_what_the_server_would_refuse_is_refused_before(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(SETTINGS, **changes)  # type: ignore[arg-type]


def test_labels_are_read_with_their_descriptions(tmp_path: Path) -> None:
    path = tmp_path / "labels.tsv"
    path.write_text("earn\tearnings and profits\n\nwheat\n")
    assert read_labels(path) == {"earn": "earnings and profits", "wheat": "wheat"}
    assert described(["a=b c", "d"], "=", "option") == {"a": "b c", "d": "d"}


def test_labels_that_cannot_be_read_say_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels.tsv: cannot be read as text"):
        read_labels(tmp_path / "labels.tsv")
    with pytest.raises(DataError, match=r"option --label: 'a=c'.*all different"):
        described(["a=b", "a=c"], "=", "option --label")


def test_examples_to_fit_to_are_not_those_to_measure_on() -> None:
    texts = TextData(tuple(map(str, range(20))), np.arange(20) % 2, ("a", "b"))
    few, rest = apart(texts, 5, seed=1)
    assert few is not None
    assert sorted((*few.texts, *rest.texts), key=int) == list(texts.texts)
    assert len(few) == 5
    assert some(texts, 5, seed=1).texts == few.texts
    assert apart(texts, 0, seed=1)[0] is None
