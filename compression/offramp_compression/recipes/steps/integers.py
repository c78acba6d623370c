"""The step that makes eight-bit integers of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from offramp_common.toml_schema import between

from offramp_compression.data.batches import Batches
from offramp_compression.data.dataset import tensors
from offramp_compression.export.formats import torch_of
from offramp_compression.export.program import VariableDimensions, text_lengths
from offramp_compression.network import Network
from offramp_compression.quantization.layers import Int8Model, Quantizer
from offramp_compression.quantization.qat import fine_tune_rounded
from offramp_compression.quantization.quantize import chosen_layers, open_quantizer, quantized
from offramp_compression.quantization.sensitivity import Judge, choose_float_layers, most_sensitive_first, scan
from offramp_compression.quantization.settings import QuantizationSettings
from offramp_compression.recipes.schema import FileFormat
from offramp_compression.recipes.steps.learning import Augmentation, StepTraining, settings_for, watching
from offramp_compression.recipes.workshop import Artefact, Step, Workshop
from offramp_compression.training.objective import Supervised


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeStep(Step):
    """`kind = "quantize"`: static INT8 of the network of step `of`, calibrated on the recipe's calibration examples."""

    kind: Literal["quantize"]
    format: FileFormat = "onnx"
    quantization: QuantizationSettings = field(default_factory=QuantizationSettings)
    # Leave the most sensitive layers in float until at most so many points of accuracy are lost on the validation
    # examples; left out: quantise every layer that can be.
    max_points_lost: Annotated[float, between(0)] | None = None
    # Fine-tune with rounding first; left out: quantise the network as it is.
    training: StepTraining | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)

    def bound_to(self) -> Mapping[str, str]:
        return torch_of(self.format)

    def problem(self) -> str:
        if not self.of:
            return 'name the step "of" which the network is quantised'
        if set(self.serve) - {self.format}:
            return f'it makes a .{self.format} file, so serve can be ["{self.format}"] only'
        return ""

    def make(self, workshop: Workshop) -> Artefact:
        network = workshop.classifier(self.of)
        calibration = workshop.data.calibration
        variable = text_lengths(network.input_names, tensors(calibration))
        if self.training is not None:
            network = self._fine_tuned(network, self.training, variable, workshop)
        quantizer = open_quantizer(network, calibration, self.format, self.quantization, variable)
        judge = Judge(network, workshop.data.validation)
        model = self._chosen(network, quantizer, judge, workshop)
        quality = judge.quality(model)
        measured = {"validation_accuracy": quality.accuracy, "validation_sqnr_db": quality.sqnr}
        made = quantized(network, quantizer, model, calibration, self.format, self.quantization).described(measured)
        path = workshop.folder / f"model.{self.format}"
        model.write(path)
        return Artefact(path, made.signature, made.network)

    def _chosen(self, network: Network, quantizer: Quantizer, judge: Judge, workshop: Workshop) -> Int8Model:
        layers = chosen_layers(network, quantizer, self.quantization)
        if self.max_points_lost is None:
            return quantizer.quantize(layers)
        ranked = [each.layer for each in most_sensitive_first(scan(quantizer, judge, layers))]
        kept, model = choose_float_layers(quantizer, judge, ranked, self.max_points_lost / 100)
        workshop.say(f"{self.name}: left in float: {', '.join(kept) or 'none'}")
        return model

    def _fine_tuned(
        self, network: Network, training: StepTraining, variable: VariableDimensions, workshop: Workshop
    ) -> Network:
        settings = settings_for(training, workshop)
        data = workshop.data
        batches = Batches(data.train, settings.batch_size, settings.seed, self.augmentation.of(data.train))
        return fine_tune_rounded(
            network, batches, settings, Supervised(),
            reduce_range=self.quantization.reduces_range, keep_float=self.quantization.keep_float, variable=variable,
            validate=data.validation, **watching(workshop, self.name),
        ).network  # fmt: skip
