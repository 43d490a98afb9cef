"""The part of the contract that all families share: tokenizer, model folder, trainable parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from reca.core import artifacts
from reca.models.checkpoint_io import Pin
from reca.models.common.naming import Naming, read
from reca.models.common.tokenizer import TextFrontEnd
from reca.models.contract import UnifiedModel

DESCRIPTION, FORMAT = "reca_model.json", 1


class NoTokenizer(ValueError):
    """A model without a tokenizer was given a text."""


@dataclass(frozen=True)
class WeightFile:
    """One weight file of a model folder.

    `role` is its name in `load_parts`, `name` that of the file. `inside` is the prefix of its tensors in a released
    checkpoint with several parts; such a part need not be given separately.
    """

    role: str
    name: str
    module: nn.Module
    naming: Naming
    inside: str = ""


class FamilyModel(UnifiedModel):
    """A model with a `network` (trained by RecA, returned by `official_state`) and `frozen` modules."""

    title: ClassVar[str]
    """The display name of the family."""
    front_end: ClassVar[type[TextFrontEnd]]

    def __init__(self, config: Any, options: Any, network: nn.Module, frozen: nn.Module) -> None:
        super().__init__()
        self.config, self.options = config, options
        self.network: Any = network
        self.frozen: Any = frozen
        self._text: Any = None

    # ---- text -----------------------------------------------------------------------------------
    @property
    def text(self) -> Any:
        """The text front end; ValueError if the model has no tokenizer."""
        if self._text is None:
            raise NoTokenizer(
                f"this {self.title} has no tokenizer; load a model folder with a tokenizer.json, or call set_tokenizer "
                "(in tiny(), for instance)"
            )
        return self._text

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Use this tokenizer; ValueError unless its ids match the network."""
        self._text = self.front_end(tokenizer, self.config)

    def read_tokenizer(self, folder: str | Path) -> None:
        """Use the tokenizer in a folder; ValueError names the folder and any mismatch with the network."""
        self._text = self.front_end.read(folder, self.config)

    # ---- parameters -----------------------------------------------------------------------------
    def trainable_parameters(self) -> list[str]:
        """All parameters of the network."""
        return [name for name, _ in self.named_parameters() if name.startswith("network.")]

    # ---- files ----------------------------------------------------------------------------------
    def weight_files(self) -> Sequence[WeightFile]:
        """The weight files of a model folder; the first one holds the network."""
        raise NotImplementedError

    def official_state(self) -> dict[str, Tensor]:
        """The first weight file's content under its released names."""
        file = self.weight_files()[0]
        return file.naming.state(file.module)

    def load(self, path: Path) -> None:
        """Load a model folder, or only the network from an official checkpoint file or folder (a RecA result, say)."""
        path, files = Path(path), self.weight_files()
        if not (path / DESCRIPTION).is_file():
            self.load_weights(files[0].role, path)
            return
        for file in files:
            self.load_weights(file.role, path / file.name)
        self.read_tokenizer(path)

    def load_weights(
        self, role: str, path: Path, sha256: Pin | None = None, allow_unpinned: bool = False
    ) -> set[str]:
        """Load a checkpoint strictly into the file's module and other modules that it contains; returns their roles."""
        tensors, loaded = read(path, sha256, allow_unpinned), set()
        for file in self.weight_files():
            names = [name for name in tensors if file.inside and name.startswith(file.inside)]
            own = {name.removeprefix(file.inside): tensors.pop(name) for name in names}
            if file.role == role and not own:
                own = tensors
            if own:
                file.naming.load(file.module, own, path)
                loaded.add(file.role)
        return loaded

    def load_parts(
        self,
        parts: Mapping[str, Path],
        *,
        sha256: Mapping[str, Pin] | None = None,
        allow_unpinned: bool = False,
    ) -> set[str]:
        """Load official files or folders by role: those of `weight_files`, and `tokenizer`.

        Returns the roles that were loaded. A pickle is opened only if its `sha256` is given, unless `allow_unpinned`.
        ValueError names missing roles.
        """
        files = {file.role: file for file in self.weight_files()}
        needed = {role for role, file in files.items() if not file.inside} | {"tokenizer"}
        if not needed <= set(parts) <= {*files, "tokenizer"}:
            required = ", ".join([*files, "tokenizer"])
            raise ValueError(
                f"{self.title} requires {required}; given: {', '.join(parts) or 'nothing'}"
            )
        loaded: set[str] = set()
        for role in (role for role in files if role in parts):
            pin = (sha256 or {}).get(role)
            loaded |= self.load_weights(role, Path(parts[role]), pin, allow_unpinned)
        for role in (role for role in files if role not in loaded):
            raise ValueError(
                f"{parts['weights']}: contains no {files[role].inside}*; give {role} as a separate file"
            )
        self.read_tokenizer(parts["tokenizer"])
        return loaded

    def save(self, directory: Path) -> None:
        """Write the weight files under official names, the tokenizer, and the description last."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for file in self.weight_files():
            file.naming.save(file.module, directory / file.name)
        self.text.tokenizer.save_pretrained(str(directory))
        network = asdict(self.config) | {"options": asdict(self.options)}
        described = {"family": self.family, "network": network, "format": FORMAT}
        artifacts.write_json(directory / DESCRIPTION, described)
