"""Joining the ranks: whose precision counts, and what trackers are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtr.errors import UsageError
from vtr.pretrain import join as module
from vtr.pretrain.join import choose_precision, flat, trackers_begin
from vtr.pretrain.recipes import Optim
from vtr.ranks import Ranks
from vtr.threads import Launcher


@pytest.fixture
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.setattr(module, "default_config_file", str(tmp_path / "none.yaml"))
    return monkeypatch


def test_auto_is_the_machines_where_nobody_said_anything(no_configuration: pytest.MonkeyPatch) -> None:
    no_configuration.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert choose_precision("auto", True, None)[0] == "bf16"
    assert choose_precision("auto", False, None)[0] == "no"
    # accelerate says `no` where it was told nothing: that is not the user's word.
    no_configuration.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert choose_precision("auto", True, Launcher(["accelerate", "launch", "run.py"], {}))[0] == "bf16"


def test_auto_follows_the_launchers_flag_and_configuration(no_configuration: pytest.MonkeyPatch) -> None:
    no_configuration.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    told = Launcher(["accelerate", "launch", "--mixed_precision", "bf16", "run.py"], {})
    assert choose_precision("auto", False, told) == ("bf16", "the launcher's mixed_precision bf16")
    no_configuration.setenv("ACCELERATE_MIXED_PRECISION", "no")
    for words in (["--mixed_precision=no"], ["--config_file", "gpu8.yaml"]):
        assert choose_precision("auto", True, Launcher(["accelerate", "launch", *words], {}))[0] == "no"


def test_our_own_flag_counts_more_than_the_launchers(no_configuration: pytest.MonkeyPatch) -> None:
    no_configuration.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert (
        choose_precision("bf16", True, Launcher(["accelerate", "launch", "--mixed_precision", "no"], {}))[0] == "bf16"
    )


def test_a_precision_that_we_do_not_train_in_is_refused(no_configuration: pytest.MonkeyPatch) -> None:
    no_configuration.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UsageError, match="fp16: expected bf16 or no"):
        choose_precision("auto", True, Launcher(["accelerate", "launch", "--mixed_precision", "fp16"], {}))


def test_settings_are_flat_and_plain_for_trackers() -> None:
    assert flat({"optim": Optim(lr=0.5), "out": Path("runs/a"), "n": None}) == {
        "optim.lr": 0.5, "optim.betas": "(0.9, 0.999)", "optim.eps": 1e-8, "optim.weight_decay": 0.05,
        "optim.clip_grad": 0.0, "optim.warmup_fraction": 0.1, "optim.min_lr_ratio": 0.01, "optim.decay_state": False,
        "out": "runs/a", "n": "None",
    }  # fmt: skip


class Recorder:
    """Stands in for an accelerator with a tracker."""

    process_index, num_processes, device, mixed_precision = 0, 1, None, "no"
    log_with = ("wandb",)

    def init_trackers(self, project: str, config: dict, init_kwargs: dict) -> None:
        self.config, self.wandb = config, init_kwargs["wandb"]


def test_a_resumed_run_goes_on_in_its_own_tracker_and_another_run_in_another(tmp_path: Path) -> None:
    def begun(first: float, calls: int) -> dict:
        recorder = Recorder()
        record = {"calls": [{"started": first + i} for i in range(calls)]}
        (tmp_path / "run.json").write_text(json.dumps(record))
        trackers_begin(Ranks(recorder), {"seed": 1}, tmp_path)  # type: ignore[arg-type]
        assert recorder.config == {"seed": 1}
        return recorder.wandb

    first, resumed, other = begun(5.0, 1), begun(5.0, 2), begun(9.0, 1)
    assert first["dir"] == str(tmp_path)
    assert first["name"] == tmp_path.name
    assert first["id"] == resumed["id"] != other["id"]
