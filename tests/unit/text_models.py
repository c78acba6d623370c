"""Tiny tokenizers, and models that take what these make. What a model answers can be told from the words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "book")
IDS = {word: number for number, word in enumerate(WORDS)}


def write_tokenizer(folder: Path, *, special: bool = True, padding: Mapping[str, object] | None = None) -> Path:
    """One token a word, in BERT's manner: [CLS] good film [SEP]."""
    tokenizer = Tokenizer(models.WordLevel(IDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        ends = [("[CLS]", IDS["[CLS]"]), ("[SEP]", IDS["[SEP]"])]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    if padding is not None:
        tokenizer.enable_padding(**padding)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def write_bag(
    path: Path, vectors: Mapping[str, Sequence[float]], output: str = "logits", length: int | str = "length"
) -> Path:
    """input_ids and attention_mask, INT64[batch, length], to the sum of the vectors of the words not masked."""
    width = len(next(iter(vectors.values())))
    table = np.zeros((len(WORDS), width), np.float32)
    for word, vector in vectors.items():
        table[IDS[word]] = vector
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["looked_up"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["looked_up", "column"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "middle"], [output], keepdims=0),
    ]
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([2], np.int64), "last"),
        numpy_helper.from_array(np.array([1], np.int64), "middle"),
    ]
    tokens = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", length])
        for name in ("input_ids", "attention_mask")
    ]
    vector = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", width])
    graph = helper.make_graph(nodes, "bag", tokens, [vector], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


SENTIMENT = {"good": (0.0, 1.0), "bad": (1.0, 0.0)}


def write_sentiment(repository: Path, name: str = "sentiment", preprocess: str = "", toml: str = "") -> None:
    """Counts bad words against good ones: logits FP32[2], labelled bad and good."""
    write_bag(repository / name / "1" / "model.onnx", SENTIMENT)
    write_tokenizer(repository / name)
    (repository / name / "model.toml").write_text(
        f'{toml}\n[[outputs]]\nname = "logits"\nlabels = ["bad", "good"]\n'
        f'[preprocess]\ntokenizer = "tokenizer.json"\nmax_length = 32\n{preprocess}\n'
    )


# The directions of a made-up space of meaning.
MEANING = {"good": (1.0, 0.0, 0.0), "bad": (-1.0, 0.2, 0.0), "film": (0.0, 1.0, 0.1), "book": (0.0, -0.1, 1.0)}


def write_zero_shot(repository: Path, name: str = "topics", table: str = "", toml: str = "") -> None:
    """An encoder of three dimensions that serves as a classifier: film or book."""
    write_bag(repository / name / "1" / "model.onnx", MEANING, output="embedding")
    write_tokenizer(repository / name)
    (repository / name / "model.toml").write_text(
        f'{toml}\n[preprocess]\ntokenizer = "tokenizer.json"\nmax_length = 32\n'
        f'[zero_shot]\nlabels = ["movies", "reading"]\ndescriptions = ["film", "book"]\n{table}\n'
    )
