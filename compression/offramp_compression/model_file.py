"""A network in one .safetensors file: weights as tensors, everything else as JSON in the header.

Reading one never unpickles, and builds networks from this package's own code only, unless told which other to trust.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from offramp_common.text import quoted
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from offramp_compression.blueprint import Blueprint, Edit, is_foreign
from offramp_compression.errors import ModelError
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance

FORMAT = "offramp-network-1"
_SHOWN_TENSORS = 4


def save(network: Network, path: Path, *, half: bool = False) -> None:
    """Write `network` to `path`, whole or not at all; with `half`, floating-point tensors in half precision.

    Raises ModelError if what is known of the network cannot be written as JSON, or if a weight is beyond what half
    precision can hold.
    """
    weights = {name: _stored(name, tensor, half) for name, tensor in network.module.state_dict().items()}
    header = {"format": FORMAT, "network": _described(network)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as scratch:
        partial = Path(scratch) / path.name
        partial.touch()
        mode = partial.stat().st_mode
        save_file(weights, partial, metadata=header)
        # safetensors lets only the owner read what it writes; a new file's mode is the user's to choose, by the umask.
        partial.chmod(mode)
        os.replace(partial, path)


def load(path: Path, *, trusted: Collection[str] = ()) -> Network:
    """The network of the file at `path`, in evaluation mode and FP32. torch's random state is left as it was.

    `trusted` are the packages that may be imported if the file says that their code builds the network.
    Raises ModelError if the file is missing, was not written by `save`, needs code that is not trusted, or holds other
    weights than its network has.
    """
    header, weights = _read(path)
    about = _About.parse(header, path)
    _require_trust(about.blueprint, trusted, path)
    module = _built(about.blueprint)
    _fill(module, weights, path)
    return Network(
        module.eval(), about.blueprint, about.class_names, about.input_names, about.output_names, about.provenance
    )


@dataclass(frozen=True, slots=True)
class _About:
    """What the header says of a network: all but its weights."""

    blueprint: Blueprint
    class_names: tuple[str, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    provenance: Provenance

    @classmethod
    def parse(cls, header: Mapping[str, str], path: Path) -> _About:
        if header.get("format") != FORMAT:
            raise ModelError(
                f"{path}: weights without the description of a network; expected a file that an offramp command wrote"
            )
        try:
            said = json.loads(header["network"])
            blueprint = said["blueprint"]
            edits = tuple(Edit(edit["kind"], dict(edit["arguments"])) for edit in blueprint["edits"])
            return cls(
                Blueprint(str(blueprint["architecture"]), dict(blueprint["arguments"]), edits),
                _names(said["class_names"]), _names(said["input_names"]), _names(said["output_names"]),
                Provenance(**said["provenance"] | {"parents": _names(said["provenance"]["parents"])}),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{path}: its description of the network is damaged ({error!r}); make it again") from error


def _described(network: Network) -> str:
    about = _About(
        network.blueprint, network.class_names, network.input_names, network.output_names, network.provenance
    )
    try:
        return json.dumps(asdict(about))
    except (TypeError, ValueError) as error:
        raise ModelError(f"the network's arguments or settings cannot be written as JSON: {error}") from error


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"expected a list of names, got {value!r}")
    return tuple(value)


def _stored(name: str, tensor: Tensor, half: bool) -> Tensor:
    # Cloned, as safetensors refuses tensors that share memory; loading copies into both places again.
    stored = tensor.detach().cpu().contiguous().clone()
    if not half or not stored.is_floating_point():
        return stored
    halved = stored.half()
    if not torch.isfinite(halved).all():
        raise ModelError(f"{quoted(name)} holds values that half precision cannot; save it in full precision")
    return halved


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file; expected a network that an offramp command wrote")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(f"{path}: not a whole .safetensors file ({error}); make it again") from error


def _require_trust(blueprint: Blueprint, trusted: Collection[str], path: Path) -> None:
    if not is_foreign(blueprint.architecture):
        return
    package = blueprint.architecture.partition(":")[0].partition(".")[0]
    if package not in trusted:
        raise ModelError(
            f"{path}: its network is built by {quoted(blueprint.architecture)}, code that is not Offramp's and that "
            f"would be run; if you trust it, say so: --trust {package} (in Python: trusted={{{package!r}}})"
        )


def _built(blueprint: Blueprint) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return blueprint.build()


def _fill(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    expected = module.state_dict()
    differing = sorted(expected.keys() ^ weights.keys())
    if differing:
        raise ModelError(f"{path}: its weights are not those of its network; they differ in {_shown(differing)}")
    misfits = [
        f"{name} {list(weights[name].shape)} for {list(tensor.shape)}"
        for name, tensor in expected.items()
        if tensor.shape != weights[name].shape
    ]
    if misfits:
        raise ModelError(f"{path}: its weights do not have the shapes of its network: {_shown(misfits)}")
    # Copying into the FP32 tensors of the module widens the halves.
    module.load_state_dict(dict(weights))


def _shown(items: list[str]) -> str:
    rest = len(items) - _SHOWN_TENSORS
    return ", ".join(items[:_SHOWN_TENSORS]) + (f" and {rest} more" if rest > 0 else "")
