"""Model folders: config.json, model.safetensors and, where there are words, tokenizer.json; written and read one way."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vtr.errors import VtrError
from vtr.files import write_atomically
from vtr.models.base import Model, load_strictly
from vtr.models.publish import push

_M = TypeVar("_M", bound="SavedModel")


class Undrawn(TorchFunctionMode):
    """Weights that are about to be loaded are not drawn at random first: that takes longer than all the rest.

    Not the meta device, which would lose what a constructor computes and no file holds: pixel statistics, fixed tables.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in (nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        if func in (Tensor.uniform_, Tensor.normal_) and isinstance(args[0], Tensor):
            return args[0].zero_()  # trunc_normal_ draws again what is out of bounds
        return func(*args, **kwargs)


class SavedModel(Model):
    """A model that lies in a folder of its own.

    Attributes:
        files: What such a folder must hold.
        folder: The one it was loaded from; None of a new model.
    """

    files: ClassVar[tuple[str, ...]] = ("config.json", "model.safetensors")
    folder: Path | None = None
    _known: tuple[dict[str, object], dict[str, object]] | None = None  # `_values` when it was loaded, and config.json

    def _values(self) -> dict[str, object]:
        """The content of config.json."""
        raise NotImplementedError

    @classmethod
    def _from_values(cls: type[_M], values: dict[str, object], folder: Path) -> _M:
        """An untrained model of what config.json holds."""
        raise NotImplementedError

    def _save_words(self, folder: Path) -> None:
        """Write the tokenizer, where there is one."""

    def _identity(self) -> str:
        return json.dumps(self._written(), sort_keys=True)

    def _written(self) -> dict[str, object]:
        """What config.json says of it: as it was read, without the settings that vtr got since, while nothing has changed.

        So a folder keeps its fingerprint, and libraries their model, whatever later versions can set.
        """
        own = self._values()
        return self._known[1] if self._known and self._known[0] == own else own

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model's folder; the weights last and at once, so that a folder with weights is whole.

        Raises:
            VtrError: The folder cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._save_words(folder)
            with write_atomically(folder / "config.json") as partial:
                partial.write_text(json.dumps(self._written(), indent=1) + "\n", encoding="utf-8")
            with write_atomically(folder / "model.safetensors") as partial:
                save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, partial)
        except (OSError, SafetensorError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise VtrError(f"{folder}: the model cannot be written ({why})") from error

    def push_to_hub(
        self,
        name: str,
        *,
        licence: str = "",
        results: Sequence[str | Path] = (),
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Upload the model and its card to the Hugging Face hub, where `vtr.load(name)` finds it; returns the address.

        Args:
            name: OWNER/NAME; made where it is not there.
            licence: Identifier of the weights' licence as the hub knows it, as in "apache-2.0"; "": not stated.
            results: Result files of evaluations, or folders of them, beside the run's own. Only those of this very
                model are in the card.
            private: Of a repository that is made by this; one that is there stays as it is.
            token: With the right to write; default: HF_TOKEN, or what `hf auth login` has kept.

        Raises:
            UsageError: The name is none, or there is no token.
            VtrError: The hub is out of reach or refuses.
        """
        return push(self, name, licence=licence, results=results, private=private, token=token)

    @classmethod
    def from_pretrained(cls: type[_M], folder: str | Path) -> _M:
        """Load a folder written by `save_pretrained`.

        Raises:
            VtrError: A file is missing or damaged, or the weights are of other sizes than config.json says.
        """
        folder = Path(folder)
        values = read_config(folder, cls.files)
        try:
            with Undrawn():
                model = cls._from_values(values, folder)
        except (TypeError, KeyError, ValueError) as error:
            raise VtrError(f"{folder}/config.json is not a model configuration: {error}") from error
        try:
            state = load_file(folder / "model.safetensors")
        except (SafetensorError, OSError) as error:
            raise VtrError(f"{folder}/model.safetensors is damaged: {str(error).splitlines()[0]}") from error
        load_strictly(model, state, str(folder / "model.safetensors"))
        model.folder, model._known = folder, (model._values(), values)
        return model.eval()


def read_config(folder: Path, files: Sequence[str] = ("config.json",)) -> dict[str, object]:
    """The content of a model folder's config.json.

    Raises:
        VtrError: One of `files` is missing, or config.json is no object.
    """
    for name in files:
        if not (folder / name).is_file():
            raise VtrError(f"{folder}: {name} is missing; expected a model folder or a run that has finished")
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise VtrError(f"{folder}/config.json is not a model configuration: {error}") from error
    if not isinstance(values, dict):
        raise VtrError(f"{folder}/config.json is not a model configuration: expected an object of settings")
    return values
