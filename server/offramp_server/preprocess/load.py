"""From a model's settings to what prepares its requests."""

from __future__ import annotations

from offramp_common.extras import MissingExtra

from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.preprocess.image import ImagePreprocessor
from offramp_server.preprocess.items import Preprocessor
from offramp_server.preprocess.settings import TextPreprocess
from offramp_server.preprocess.text import TextPreprocessor


def load_preprocessor(spec: ModelSpec) -> Preprocessor | None:
    """None for a model that takes tensors only. Reads files. Raises LoadError."""
    settings = spec.preprocess
    if settings is None:
        return None
    try:
        return TextPreprocessor(settings) if isinstance(settings, TextPreprocess) else ImagePreprocessor(settings)
    except MissingExtra as error:
        raise LoadError(f'model "{spec.name}": {error}') from error
    except OSError as error:
        raise LoadError(f'model "{spec.name}": {error.filename}: cannot be read: {error.strerror}') from error
