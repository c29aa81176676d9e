"""Put a model on the Hugging Face hub: its folder and its card, in one commit, where that is asked for in so many words."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id

from vtr.errors import UsageError, VtrError
from vtr.models.card import model_card, origin_of
from vtr.models.hub import reach_hub

if TYPE_CHECKING:
    from vtr.models.folder import SavedModel


def card_of(model: SavedModel, name: str, *, licence: str = "", results: Sequence[str | Path] = ()) -> str:
    """The card that `push` would write, as Markdown.

    Args:
        name: OWNER/NAME on the hub.
        licence: Identifier of the weights' licence as the hub knows it, as in "apache-2.0"; "": not stated.
        results: Result files, or folders of them, beside the run's own. Only those of this very model count.

    Raises:
        UsageError: The name is none.
        VtrError: A file of results is not there.
    """
    _check(name)
    origin = origin_of(model, results)
    for path in origin.others:
        print(f"{path}: of another model, left out", file=sys.stderr)
    return str(model_card(model, name, origin, licence))


def push(
    model: SavedModel,
    name: str,
    *,
    licence: str = "",
    results: Sequence[str | Path] = (),
    private: bool = False,
    token: str | None = None,
    api: HfApi | None = None,
) -> str:
    """Upload config.json, model.safetensors, the words and README.md as one commit; returns the address.

    Args:
        name, licence, results: As in `card_of`.
        private: Of a repository that is made by this; an existing one stays as it is.
        token: Of the hub, with the right to write; default: HF_TOKEN, or what `hf auth login` has kept.
        api: Another client of the hub.

    Raises:
        UsageError: The name is none, or there is no token.
        VtrError: The hub is out of reach or refuses.
    """
    card = card_of(model, name, licence=licence, results=results)
    secret = token or get_token()
    if api is None and secret is None:
        raise UsageError(f"{name}: no token of the hub: set HF_TOKEN, or run: hf auth login")
    with tempfile.TemporaryDirectory(prefix="vtr-push-") as place:
        model.save_pretrained(place)
        Path(place, "README.md").write_text(card + "\n", encoding="utf-8")
        try:
            if api is None:
                reach_hub()
                api = HfApi(token=secret)
            api.create_repo(name, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=name, folder_path=place, commit_message=f"vtr: {type(model).__name__}")
        except Exception as error:  # no network, no right to write, a full quota: many kinds
            text = " ".join(str(error).split()) or type(error).__name__
            text = text.replace(secret, "…") if secret else text
            raise VtrError(
                f"{name}: the hub did not take the model ({text[:300]})"
            ) from None  # a chain would show the token
    return str(done.commit_url)


def _check(name: str) -> None:
    try:
        validate_repo_id(name)
        owner, _, own = name.partition("/")
    except HFValidationError as error:
        raise UsageError(f"{name!r}: expected OWNER/NAME ({' '.join(str(error).split())[:200]})") from error
    if not owner or not own:
        raise UsageError(f"{name!r}: expected OWNER/NAME, a name on the hub")
