"""`vtr pretrain`, `vtr finetune` and `vtr eval`: one word instead of a launcher and a script.

Without further words the work is done in this process, on all cores or the GPU. Several ranks are started with torchrun's
agent, a configuration of accelerate's with accelerate's launcher, both inside this process: one tree of processes, one
line for an error, one exit code.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from vtr.errors import UsageError, VtrError
from vtr.files import import_root
from vtr.settings import LAUNCHED, parsed


@dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """How the ranks of a training or an evaluation are started."""

    ranks: int = 0
    """Processes on this machine (default: one a GPU, else one)."""
    nodes: int = 1
    """Machines that work together; call the same command on each of them, with --main."""
    node_rank: int = 0
    """Which of them this is, 0 being the one that --main names."""
    main: str = ""
    """HOST or HOST:PORT of the first machine (port 29500)."""
    config_file: Path | None = None
    """A configuration of accelerate's (`accelerate config`, pretrain/accelerate/*.yaml) instead of --ranks and --nodes."""


class Entry(NamedTuple):
    """What a word starts: the module with its settings, and the entry module with its examples and function."""

    settings: str
    type: str
    module: str


ENTRIES = {
    "pretrain": Entry("vtr.pretrain.settings", "RunSettings", "vtr.pretrain.run"),
    "finetune": Entry("vtr.pretrain.recognition.settings", "TuneSettings", "vtr.pretrain.finetune"),
    "eval": Entry("vtr.eval.zero_shot", "ZeroShotSettings", "vtr.eval.zero_shot"),
}


def settings_of(verb: str) -> type:
    """The flags of a verb of `ENTRIES`: those of its work, then those of its launch."""
    entry = ENTRIES[verb]
    own: type = getattr(importlib.import_module(entry.settings), entry.type)
    both = type(own.__name__, (LaunchSettings, own), {"__doc__": own.__doc__})
    return dataclass(frozen=True, kw_only=True)(both)


def launched(verb: str, words: list[str]) -> int:
    """Run a verb of `ENTRIES` with its flags, on as many ranks as asked for; returns the exit code."""
    module = importlib.import_module(ENTRIES[verb].module)
    settings = parsed(settings_of(verb), words, f"vtr {verb}", (module.__doc__ or "").replace(*_SPELLED[verb]))
    assert isinstance(settings, LaunchSettings)
    if LAUNCHED in os.environ or "WORLD_SIZE" in os.environ:  # a rank, also of the user's own torchrun
        return module.start(settings)
    _check(settings)
    command = [verb, *words]
    if settings.config_file is not None:
        return _supervised(lambda: _by_accelerate(Path(str(settings.config_file)), command))
    ranks = settings.ranks or _gpus()
    if ranks == 1 and settings.nodes == 1:
        return module.start(settings)
    return _supervised(lambda: _by_torchrun(settings, ranks, command))


_SPELLED = {
    "pretrain": ("accelerate launch pretrain/run.py", "vtr pretrain"),
    "finetune": ("accelerate launch pretrain/finetune.py", "vtr finetune"),
    "eval": ("accelerate launch eval/zero_shot.py", "vtr eval"),
}


def _check(settings: LaunchSettings) -> None:
    if settings.ranks < 0 or settings.nodes < 1 or not 0 <= settings.node_rank < settings.nodes:
        raise UsageError(
            f"--ranks {settings.ranks} --nodes {settings.nodes} --node-rank {settings.node_rank}: "
            "expected 1 or more ranks and nodes, and a node rank from 0 to nodes - 1"
        )
    if settings.nodes > 1 and not settings.main:
        raise UsageError("--nodes needs --main: the host of the first machine, as in --main 10.0.0.1:29500")
    if settings.config_file is not None:
        if settings.ranks or settings.nodes > 1:
            raise UsageError("--config-file says how many ranks there are: leave --ranks and --nodes out")
        if not settings.config_file.is_file():
            raise UsageError(f"--config-file {settings.config_file}: no such file")


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def _by_torchrun(settings: LaunchSettings, ranks: int, command: list[str]) -> int:
    """Start this machine's ranks and wait for them; returns the exit code of the first that failed."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    words = ["--nproc-per-node", str(ranks), "--max-restarts", "0", "--monitor-interval", "0.2"]
    if settings.nodes == 1:
        words += ["--standalone"]
    else:
        host, _, port = settings.main.partition(":")
        words += ["--nnodes", str(settings.nodes), "--node-rank", str(settings.node_rank)]
        words += ["--master-addr", host, "--master-port", port or "29500"]
    args = parse_args([*words, "-m", "vtr.cli", *command])
    if args.standalone:
        args.rdzv_backend, args.rdzv_endpoint, args.rdzv_id = "c10d", "localhost:0", f"vtr-{os.getpid()}"
    config, entrypoint, entry_words = config_from_args(args)
    try:
        elastic_launch(config=config, entrypoint=entrypoint)(*entry_words)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 1
    except Exception as error:  # the agent could not meet the other nodes, or lost them
        raise VtrError(f"the ranks cannot be started: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    return 0


def _by_accelerate(config: Path, command: list[str]) -> int:
    """Start what a configuration of accelerate's asks for, and wait."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(launch_command_parser().parse_args(["--config_file", str(config), "-m", "vtr.cli", *command]))
    except subprocess.CalledProcessError as error:
        return error.returncode if error.returncode > 0 else 1
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 1
    except (ValueError, TypeError) as error:
        raise VtrError(f"--config-file {config}: {str(error).splitlines()[0]}") from error
    return 0


def _supervised(work: Callable[[], int]) -> int:
    """Run a launcher while this thread hears Ctrl-C and SIGTERM: ranks end in order, each is told once, nobody twice."""
    root = str(import_root())
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = (
        f"{root}{os.pathsep}{path}" if path else root
    )  # ranks import the same vtr, installed or not
    os.environ[LAUNCHED] = "1"
    logging.disable(logging.CRITICAL)  # the launcher's own talk; the ranks say what happened
    heard: list[int] = []
    result: list[int | BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            result.append(error)

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        _tell_ranks(signal.SIGTERM if len(heard) == 1 else signal.SIGKILL)

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    thread = threading.Thread(target=run, name="launcher")
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.environ.pop(LAUNCHED, None)
        logging.disable(logging.NOTSET)
    outcome = result[0]
    if heard:
        return 128 + heard[0]
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _tell_ranks(number: int) -> None:
    import psutil

    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            child.send_signal(number)
