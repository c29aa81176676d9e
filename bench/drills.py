"""Fire drills: kill, starve and break small runs, resume them, and compare with the run that nothing happened to.

python -m bench.drills kills --ranks 1 2 --moments 20   # SIGKILL at random moments
python -m bench.drills ranks                            # 1, 2, 4 ranks; killed on 4, resumed on 2, then on 1
python -m bench.drills faults                           # one row per fault

Each prints a Markdown table and ends with exit code 1 when a row is not as it should be. Minutes on a CPU.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from bench.command import parsed
from vtr.errors import VtrError, reports_errors

STEPS = {"masked": 10, "multimodal": 15, "unmasked": 15, "refine": 10, "matching": 10}
# Fields of a log row that no run repeats.
_UNSTEADY = ("samples_per_s", "cpu_s_per_s", "data_wait", "memory_gib", "time")


class Call:
    """One call of the entry script, on one or more ranks, in the background.

    Args:
        flags: Of `pretrain/run.py`.
        ranks: Processes; more than one are started by torchrun.
        output: File that stdout and stderr go to.
        nodes: (this node's number, how many, port) for a run of several launchers.
    """

    def __init__(
        self,
        flags: Sequence[object],
        ranks: int,
        output: Path,
        *,
        nodes: tuple[int, int, int] | None = None,
        limit_file_size: int = 0,
    ) -> None:
        import vtr.pretrain.run

        words = [sys.executable]
        if ranks > 1 or nodes:
            words += ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
            if nodes is None:
                words += ["--standalone"]
            else:
                number, count, port = nodes
                words += ["--nnodes", str(count), "--node_rank", str(number)]
                words += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
        words += [str(Path(vtr.pretrain.run.__file__).resolve()), *map(str, flags)]
        self.output, self.ranks = output, ranks
        self._file = output.open("w")

        def limit() -> None:
            import resource

            if limit_file_size:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit_file_size, limit_file_size))

        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            words,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=limit,
        )
        self.started = time.monotonic()

    def tree(self) -> list[Any]:
        """Every process of the call."""
        import psutil

        with contextlib.suppress(psutil.Error):
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        return []

    def rank(self, number: int) -> Any:
        """The process of a rank."""
        import psutil

        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if "run.py" not in " ".join(words) or "torch.distributed.run" in words:
                    continue
                if process.environ().get("RANK", "0") == str(number):
                    return process
        raise VtrError(f"rank {number} does not run; see {self.output}")

    def workers(self, rank: int = 0) -> list[Any]:
        """The data workers of a rank: children of its fork server."""
        return [worker for helper in self.rank(rank).children() for worker in helper.children()]

    def kill(self) -> None:
        """SIGKILL to every process at once, as when the power fails."""
        import psutil

        everyone = self.tree()
        for process in everyone:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGSTOP)  # none of them sees another one die
        for process in everyone:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait(20)
        _wait_gone(everyone, 20)
        self._file.close()

    def wait(self, seconds: float = 300.0) -> int:
        """Wait for the end of all processes; the exit code."""
        everyone = self.tree()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise VtrError(f"not finished within {seconds:.0f} s; the end of its output:\n{self.tail()}") from None
        left = _wait_gone(everyone, 60)
        self._file.close()
        if left:
            for process in left:
                process.kill()
            raise VtrError(f"{len(left)} processes outlived the call by a minute: {left[0].cmdline()}\n{self.tail()}")
        return code

    def wait_after(self, words: str, seconds: float = 300.0) -> tuple[int, float]:
        """Wait for the end; the exit code, and the seconds from the first time it said `words`."""
        end = time.monotonic() + seconds
        while words not in self.text() and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        start = time.monotonic()
        return self.wait(max(1.0, end - start)), time.monotonic() - start

    def text(self) -> str:
        """What it has said so far."""
        return self.output.read_text(errors="replace")

    def tail(self, count: int = 12) -> str:
        """Its last lines."""
        return "\n".join(re.split(r"[\r\n]+", self.text())[-count:])

    def said(self) -> list[str]:
        """Its messages that begin with `vtr: `, in the order they came."""
        return re.findall(r"^.*?(vtr: .*)$", self.text().replace("\r", "\n"), flags=re.MULTILINE)


def _wait_gone(processes: Sequence[Any], seconds: float) -> list[Any]:
    """Wait until processes have ended; those that have not. One that nobody has asked for its exit code has ended."""
    import psutil

    def alive(process: Any) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    end = time.monotonic() + seconds
    left = [p for p in processes if alive(p)]
    while left and time.monotonic() < end:
        time.sleep(0.05)
        left = [p for p in left if alive(p)]
    return left


@dataclass
class Lab:
    """A folder with a small corpus, a teacher and runs."""

    folder: Path
    steps: dict[str, int] = field(default_factory=lambda: dict(STEPS))
    batch_size: int = 16
    save_every: int = 3
    workers: int = 1
    clips: int = 96
    images: int = 48
    more: tuple[str, ...] = ()  # recipe settings

    def __post_init__(self) -> None:
        from vtr.data.demo import ensure_demo_corpus

        self._calls = itertools.count()
        ensure_demo_corpus(self.folder / "data" / "demo", clips=self.clips, images=self.images, progress=False)
        if not (self.folder / "teacher" / "teacher.safetensors").is_file():
            _untrained_teacher(self.folder / "teacher")

    def flags(self, out: Path, *more: object) -> list[object]:
        """Flags of a run of all stages that logs every step."""
        fixed: list[object] = ["--corpus", "demo", "--data-root", self.folder / "data"]
        fixed += ["--demo-clips", self.clips, "--demo-images", self.images]
        fixed += ["--teacher", self.folder / "teacher", "--out", out]
        fixed += [
            "--log-every",
            1,
            "--save-every",
            self.save_every,
            "--workers",
            self.workers,
            "--resume",
            "latest",
            *more,
        ]
        steps = [f"{stage}.steps={count}" for stage, count in self.steps.items()]
        return [*fixed, "--set", "warmup.steps=2", f"batch_size={self.batch_size}", *steps, *self.more]

    def call(self, name: str, ranks: int, *more: object, flags: Sequence[object] | None = None, **how: Any) -> Call:
        """Start or resume the run `name`."""
        output = self.folder / f"{name}.{next(self._calls)}.txt"
        return Call(self.flags(self.folder / name, *more) if flags is None else flags, ranks, output, **how)

    def whole(self, name: str, ranks: int, *more: object) -> Path:
        """A run from begin to end; its folder."""
        call = self.call(name, ranks, *more)
        if call.wait(1200) != 0:
            raise VtrError(f"the run {name} failed:\n{call.tail()}")
        return self.folder / name


def _untrained_teacher(folder: Path) -> None:
    """The demo's teacher with random weights: what it says does not matter here, that it says it again does."""
    import torch
    from safetensors.torch import save_file

    from vtr.pretrain.teacher import small_clip

    torch.manual_seed(0)
    clip = small_clip(image_size=64, patch_size=16, vocab_size=64, context=8, pad_id=0)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, folder / "teacher.safetensors")


def log_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's log that are whole."""
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for line in (run / "log.jsonl").read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return rows


def wait_for_step(call: Call, run: Path, step: int, seconds: float = 300.0) -> bool:
    """Wait until this call has logged a step; False when it ended before."""
    before = {row["step"]: row["time"] for row in log_rows(run)}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if call.process.poll() is not None:
            return False
        if any(r["step"] >= step and before.get(r["step"]) != r["time"] for r in log_rows(run)):
            return True
        time.sleep(0.02)
    raise VtrError(f"step {step} was not reached within {seconds:.0f} s:\n{call.tail()}")


def difference(run: Path, reference: Path, *, tolerance: float = 0.0) -> str:
    """Where a run is not the reference: steps, batches, losses, weights; "" when it is.

    Args:
        tolerance: Largest difference of a loss, relative to values over 1; 0 asks for the same bits, of weights too.
    """
    ours, theirs = log_rows(run), log_rows(reference)
    if [r["step"] for r in ours] != [r["step"] for r in theirs]:
        return f"other steps: {[r['step'] for r in ours]}"
    for a, b in zip(ours, theirs):
        a, b = ({k: v for k, v in r.items() if k not in _UNSTEADY} for r in (a, b))
        if a["batch"] != b["batch"] or a["media"] != b["media"]:
            return f"step {a['step']}: other samples"
        if not tolerance and a != b:
            return f"step {a['step']}: {a} instead of {b}"
        if largest_difference([a], [b]) > tolerance:
            return f"step {a['step']}: losses differ by {largest_difference([a], [b]):.2g}"
    weights = [(p / "model" / "model.safetensors") for p in (run, reference)]
    if not tolerance and weights[0].read_bytes() != weights[1].read_bytes():
        return "other weights"
    return ""


def largest_difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """Of any loss in two logs; relative where the loss is over 1."""
    return max(
        (abs(a[k] - b[k]) / max(1.0, abs(b[k])) for a, b in zip(ours, theirs) for k in b if k in LOSSES), default=0.0
    )


LOSSES = ("loss", "uta", "vtc", "vtm", "mlm", "text")


# --- kills


@dataclass(frozen=True, kw_only=True)
class Kills:
    """SIGKILL at random moments, resume, compare with the uninterrupted run: every bit must be the same."""

    ranks: tuple[int, ...] = (1, 2)
    moments: int = 20
    seed: int = 0
    folder: Path | None = None


def kill_drill(lab: Lab, ranks: int, moments: int, seed: int) -> tuple[str, list[str]]:
    """Returns (difference, one line per kill)."""
    rng = random.Random(seed + ranks)
    reference = lab.whole(f"whole-{ranks}", ranks)
    total = sum(lab.steps.values())
    name = f"killed-{ranks}"
    run = lab.folder / name
    # Steps to kill after; 0 is while it starts, and each kill comes a random while after its step.
    targets = sorted(rng.randrange(total) for _ in range(moments))
    lines = []
    for number, target in enumerate(targets):
        call = lab.call(name, ranks)
        alone = ranks > 1 and number % 2 == 1
        if target == 0:
            time.sleep(rng.uniform(0.5, 6.0))
        elif not wait_for_step(call, run, target):
            raise VtrError(f"the run ended before step {target}:\n{call.tail()}")
        time.sleep(rng.uniform(0.0, 0.5))
        at = max((r["step"] for r in log_rows(run)), default=0)
        if alone:
            victim = rng.randrange(ranks)
            with contextlib.suppress(VtrError):  # it may not have started yet
                call.rank(victim).kill()
                started = time.monotonic()
                code = call.wait(90)
                lines.append(
                    f"rank {victim} at step {at}, all ended after {time.monotonic() - started:.1f} s, code {code}"
                )
                continue
        call.kill()
        lines.append(f"all at step {at}")
    lab.whole(name, ranks)
    return difference(run, reference), lines


def kills(settings: Kills) -> int:
    """The drill `kills`."""
    worst = 0
    print("| ranks | kills | steps logged at the kills | of them one rank alone | against the uninterrupted run |")
    print("| --- | --- | --- | --- | --- |")
    with _folder(settings.folder) as folder:
        lab = Lab(folder)
        for ranks in settings.ranks:
            found, lines = kill_drill(lab, ranks, settings.moments, settings.seed)
            steps = " ".join(re.findall(r"at step (\d+)", "; ".join(lines)))
            alone = [line for line in lines if line.startswith("rank")]
            slowest = max((float(re.findall(r"after ([\d.]+) s", line)[0]) for line in alone), default=0.0)
            ended = f"{len(alone)}, the others ended within {slowest:.1f} s" if alone else "–"
            verdict = found or f"{sum(lab.steps.values())} steps: same losses, samples and final weights, bit for bit"
            print(f"| {ranks} | {len(lines)} | {steps} | {ended} | {verdict} |", flush=True)
            worst |= bool(found)
    return int(worst)


# --- ranks


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The same run on several numbers of ranks, and killed and resumed on fewer."""

    ranks: tuple[int, ...] = (1, 2, 4)
    tolerance: float = 1e-5
    lr: float = 4e-4
    """The paper's. Rounding differs between numbers of ranks, and the demo's five times larger rate multiplies it."""
    folder: Path | None = None


def shrink_drill(lab: Lab, ranks: Sequence[int], name: str, *more: object) -> Path:
    """A run that is killed on each number of ranks but the last, a share of its steps each; `more` flags up to then."""
    run, total = lab.folder / name, sum(lab.steps.values())
    for number, count in enumerate(ranks[:-1]):
        call = lab.call(name, count, *more)
        target = (number + 1) * total // len(ranks)
        if not wait_for_step(call, run, target):
            raise VtrError(f"the run ended before step {target}:\n{call.tail()}")
        call.kill()
    return lab.whole(name, ranks[-1])


def ranks_table(settings: Ranks) -> int:
    """The drill `ranks`."""
    print("| run | steps | global batches | largest difference of a loss |")
    print("| --- | --- | --- | --- |")
    wrong = 0
    with _folder(settings.folder) as folder:
        lab = Lab(folder, more=(f"optim.lr={settings.lr}",))
        first, *others = settings.ranks
        reference = lab.whole(f"on-{first}", first)
        names = [(f"on {n} ranks", lab.whole(f"on-{n}", n)) for n in others]
        down = sorted(settings.ranks, reverse=True)
        words = ", then ".join(map(str, down))
        names.append((f"on {words} (killed between)", shrink_drill(lab, down, "shrinking")))
        theirs = log_rows(reference)
        print(f"| on {first} rank(s) | {len(theirs)} | the reference | |")
        for text, run in names:
            ours = log_rows(run)
            found = difference(run, reference, tolerance=settings.tolerance)
            same = [r["batch"] for r in ours] == [r["batch"] for r in theirs]
            print(
                f"| {text} | {len(ours)} | {'the same samples in the same order' if same else 'OTHERS'} | "
                f"{largest_difference(ours, theirs):.1e}{'' if not found else ' ' + found} |",
                flush=True,
            )
            wrong |= bool(found)
    return int(wrong)


# --- faults


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Break one thing at a time; what is seen, how long until everything has ended, what resuming gives."""

    only: tuple[str, ...] = ()
    """Names of rows."""
    folder: Path | None = None


@dataclass(kw_only=True)
class Row:
    """What became of one fault."""

    fault: str
    injected: str
    seen: str
    seconds: float | None  # from the fault to the end of the last process; None where the run went on
    resume: str
    good: bool


FAULTS: dict[str, Callable[[Lab, Path], Row]] = {}


def _fault(function: Callable[[Lab, Path], Row]) -> Callable[[Lab, Path], Row]:
    FAULTS[function.__name__.lstrip("_").replace("_", "-")] = function
    return function


def _resumed(lab: Lab, name: str, ranks: int, reference: Path) -> tuple[str, bool]:
    found = difference(lab.whole(name, ranks), reference)
    return found or "finishes; losses and weights bitwise the uninterrupted run's", not found


def _process_fault(lab: Lab, reference: Path, name: str, fault: str, injected: str, hit: Callable[[Call], None]) -> Row:
    """A fault of a process in the middle of a run on two ranks."""
    call = lab.call(name, 2)
    # At the begin of the last stage: what a worker has read ahead does not last to the end.
    wait_for_step(call, lab.folder / name, lab.steps["masked"] + lab.steps["multimodal"] + 1)
    hit(call)
    start = time.monotonic()
    code = call.wait(120)
    seconds = time.monotonic() - start
    said = list(dict.fromkeys(call.said()))
    resume, good = _resumed(lab, name, 2, reference)
    return Row(
        fault=fault, injected=injected, seen=f"exit code {code}; " + " / ".join(said[:2]), seconds=seconds, resume=resume,
        good=good and code == 1 and bool(said) and seconds < 60,
    )  # fmt: skip


@_fault
def _dead_rank(lab: Lab, reference: Path) -> Row:
    return _process_fault(
        lab, reference, "dead-rank", "a rank dies", "SIGKILL to rank 1 of 2", lambda call: call.rank(1).kill()
    )


@_fault
def _dead_main_rank(lab: Lab, reference: Path) -> Row:
    return _process_fault(
        lab, reference, "dead-main", "rank 0 dies", "SIGKILL to rank 0 of 2", lambda call: call.rank(0).kill()
    )


@_fault
def _hung_rank(lab: Lab, reference: Path) -> Row:
    def stop(call: Call) -> None:
        call.rank(1).suspend()

    return _process_fault(lab, reference, "hung-rank", "a rank hangs", "SIGSTOP to rank 1 of 2", stop)


@_fault
def _dead_worker(lab: Lab, reference: Path) -> Row:
    return _process_fault(
        lab, reference, "dead-worker", "a data worker dies", "SIGKILL to a worker of rank 1",
        lambda call: call.workers(1)[0].kill(),
    )  # fmt: skip


@_fault
def _dead_node(lab: Lab, reference: Path) -> Row:
    name = "dead-node"
    port = _free_port()
    nodes = [lab.call(name, 1, nodes=(i, 2, port)) for i in range(2)]
    wait_for_step(nodes[0], lab.folder / name, sum(lab.steps.values()) // 2)
    nodes[1].kill()
    start = time.monotonic()
    code = nodes[0].wait(120)
    seconds = time.monotonic() - start
    resume, good = _resumed(lab, name, 2, reference)
    said = list(dict.fromkeys(nodes[0].said()))
    return Row(
        fault="a node dies", injected="two launchers, SIGKILL to all processes of the second",
        seen=f"exit code {code} on the first; " + " / ".join(said[:2]), seconds=seconds, resume=resume,
        good=good and code == 1 and bool(said) and seconds < 60,
    )  # fmt: skip


@_fault
def _full_disk(lab: Lab, reference: Path) -> Row:
    name = "full-disk"
    run = lab.folder / name
    call = lab.call(name, 2)
    wait_for_step(call, run, lab.save_every + 1)
    call.kill()
    before = {p.name: p.read_bytes() for p in (run / "checkpoints").glob("step-*.pt")}
    # No more than half a checkpoint fits into a file.
    call = lab.call(name, 2, limit_file_size=min(map(len, before.values())) // 2)
    code, seconds = call.wait_after("cannot be written")
    after = {p.name: p.read_bytes() for p in (run / "checkpoints").iterdir()}
    resume, good = _resumed(lab, name, 2, reference)
    said = list(dict.fromkeys(call.said()))
    return Row(
        fault="the disk is full", injected="a limit on the size of files, half a checkpoint (EFBIG)",
        seen=f"exit code {code}; {said[0] if said else ''}; checkpoints before and after: "
        + ("the same" if before == after else "OTHERS"),
        seconds=seconds, resume=resume, good=good and code == 1 and before == after,
    )  # fmt: skip


# Faults of data: a corpus of our own is damaged, then read by two ranks.


def _shards(lab: Lab, name: str, count: int = 240, per: int = 24) -> Path:
    """Small shards of the demo's clips."""
    from vtr.data.shards import ShardWriter, iterate_samples

    folder = lab.folder / "damaged" / name
    source = sorted((lab.folder / "data" / "demo" / "train" / "video").glob("*.tar"))
    samples = [s for shard in source for s in iterate_samples(str(shard))]
    with ShardWriter(folder, per) as writer:
        for i in range(count):
            sample = samples[i % len(samples)]
            writer.write(f"{i:05d}", sample.extension, sample.media, sample.caption or "", None)
    return folder


def _members(shard: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(shard) as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]  # type: ignore[union-attr]


def _write_tar(shard: Path, members: Sequence[tuple[str, bytes]]) -> None:
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _data_run(lab: Lab, name: str, folder: Path, *more: str, workers: int = 1) -> Call:
    flags: list[object] = [
        "--corpus",
        folder,
        "--model",
        "demo",
        "--stage",
        "unmasked",
        "--steps",
        18,
        "--log-every",
        1,
    ]
    flags += ["--out", lab.folder / name, "--workers", workers, "--resume", "latest", "--save-every", 1]
    # More than an epoch: every sample is read.
    flags += ["--set", "streams=8", f"batch_size={lab.batch_size}", "unmasked.match_group=0", *more]
    return lab.call(name, 2, flags=flags)


def _counted(
    lab: Lab, name: str, fault: str, injected: str, damage: Callable[[Path], None], expect: str, count: int = 240
) -> Row:
    """Damage that is dropped and counted."""
    folder = _shards(lab, name, count)
    damage(folder)
    call = _data_run(lab, name, folder)
    code = call.wait(200)
    rows = log_rows(lab.folder / name)
    dropped = list(dict.fromkeys(re.findall(r"stream: dropped (.*)", call.text())))
    bad = rows[-1]["bad"] if rows else 0
    seen = f"exit code {code}; {len(rows)} steps; {bad} samples counted as bad"
    seen += f", such as: {_short(dropped[0], folder)}" if dropped else ""
    good = code == 0 and len(rows) == 18 and (expect == "" or any(expect in line for line in dropped))
    return Row(fault=fault, injected=injected, seen=seen, seconds=None, resume="not needed: the run went on", good=good)


def _short(text: str, folder: Path) -> str:
    return text.replace(str(folder.parent), "…")[:200]


@_fault
def _broken_tar(lab: Lab, reference: Path) -> Row:
    name = "broken-tar"
    folder = _shards(lab, name)
    victims = sorted(folder.glob("*.tar"))[:3]
    kept = {v: v.read_bytes() for v in victims}
    for victim in victims:
        victim.write_bytes(b"not a tar" * 5000)
    call = _data_run(lab, name, folder)
    code, seconds = call.wait_after("can't be used")
    said = list(dict.fromkeys(call.said()))
    rows = log_rows(lab.folder / name)
    for victim, data in kept.items():
        victim.write_bytes(data)
    again = _data_run(lab, name, folder)
    finished = again.wait(200)
    good = code == 1 and any("can't be used" in line for line in said) and finished == 0
    return Row(
        fault="broken tars, 3 of 10", injected="shards overwritten with text",
        seen=f"exit code {code} after {len(rows)} steps; {_short(said[0], folder) if said else ''}",
        seconds=seconds, resume=f"shards repaired: exit code {finished}, "
        f"{len(log_rows(lab.folder / name))} steps", good=good,
    )  # fmt: skip


@_fault
def _one_broken_tar(lab: Lab, reference: Path) -> Row:
    def cut(folder: Path) -> None:
        shard = sorted(folder.glob("*.tar"))[-1]
        shard.write_bytes(b"not a tar" * 5000)

    return _counted(
        lab, "one-broken-tar", "a broken tar, 1 of 40", "a shard overwritten with text", cut, "not a readable tar", 960
    )


@_fault
def _truncated_tar(lab: Lab, reference: Path) -> Row:
    def cut(folder: Path) -> None:
        shard = sorted(folder.glob("*.tar"))[0]
        data = shard.read_bytes()
        shard.write_bytes(data[: int(len(data) * 0.8)])

    return _counted(lab, "truncated-tar", "a tar cut off", "the last fifth of one shard of ten removed", cut, "cut off")


@_fault
def _truncated_member(lab: Lab, reference: Path) -> Row:
    def cut(folder: Path) -> None:
        shard = sorted(folder.glob("*.tar"))[0]
        members = _members(shard)
        _write_tar(shard, [(n, d[: len(d) // 3] if n == "00005.mp4" else d) for n, d in members])

    return _counted(lab, "truncated-member", "a truncated member", "one mp4 cut to a third", cut, "bytes are missing")


@_fault
def _wrong_type(lab: Lab, reference: Path) -> Row:
    def change(folder: Path) -> None:
        shard = sorted(folder.glob("*.tar"))[0]
        wrong = {"00003.mp4": b"<html>404</html>" * 20, "00007.mp4": _picture(), "00009.txt": b"\xff\xfe\x00"}
        _write_tar(shard, [(n, wrong.get(n, d)) for n, d in _members(shard)])

    return _counted(
        lab, "wrong-type", "wrong-typed members", "an mp4 that is HTML, one that is a JPEG, a caption of no words", change,
        "00003",
    )  # fmt: skip


def _picture() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 10, 10)).save(buffer, "JPEG")
    return buffer.getvalue()


@_fault
def _empty_shard(lab: Lab, reference: Path) -> Row:
    def empty(folder: Path) -> None:
        _write_tar(folder / "000003.tar", [])
        sizes = json.loads((folder / "sizes.json").read_text())
        (folder / "sizes.json").write_text(json.dumps({**sizes, "000003.tar": 0}))

    return _counted(lab, "empty-shard", "an empty shard", "a tar without members, sizes.json says 0", empty, "")


@_fault
def _few_shards(lab: Lab, reference: Path) -> Row:
    name = "few-shards"
    call = _data_run(lab, name, _shards(lab, name, 60, per=60), workers=3)
    code = call.wait(200)
    rows = log_rows(lab.folder / name)
    return Row(
        fault="fewer shards than ranks × workers", injected="1 shard, 2 ranks × 3 workers",
        seen=f"exit code {code}; {len(rows)} steps, {rows[-1]['bad'] if rows else '?'} bad: workers share shards by sample",
        seconds=None, resume="not needed: the run went on", good=code == 0 and len(rows) == 18,
    )  # fmt: skip


@_fault
def _few_samples(lab: Lab, reference: Path) -> Row:
    name = "few-samples"
    call = _data_run(lab, name, _shards(lab, name, 5, per=5))
    start = time.monotonic()
    code = call.wait(200)
    said = list(dict.fromkeys(call.said()))
    return Row(
        fault="fewer samples than streams", injected="5 samples, 8 streams",
        seen=f"exit code {code} before the first step; {said[0] if said else ''}", seconds=time.monotonic() - start,
        resume="refused until `streams` is lowered", good=code in (1, 2) and "streams" in "".join(said),
    )  # fmt: skip


def faults(settings: Faults) -> int:
    """The drill `faults`."""
    wrong = 0
    print("| fault | injected | seen | time to stop | resume |")
    print("| --- | --- | --- | --- | --- |")
    with _folder(settings.folder) as folder:
        lab = Lab(folder, steps={"masked": 4, "multimodal": 6, "unmasked": 6, "refine": 2, "matching": 4})
        reference = lab.whole("whole", 2)
        for name in settings.only or FAULTS:
            try:
                row = FAULTS[name](lab, reference)
            except VtrError as error:
                row = Row(fault=name, injected="", seen=str(error), seconds=None, resume="", good=False)
            stop = "–" if row.seconds is None else f"{row.seconds:.1f} s"
            mark = "" if row.good else " **WRONG**"
            cells = [row.fault, row.injected, row.seen, stop, row.resume + mark]
            cells = [c.replace(str(folder), "…").replace("|", "/").replace("\n", " ") for c in cells]
            print("| " + " | ".join(cells) + " |", flush=True)
            wrong |= not row.good
    return int(wrong)


def _free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """A folder of the user's, kept, or a temporary one."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="vtr-drills-") as made:
        yield Path(made)


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """Entry of `python -m bench.drills`."""
    commands = (
        Annotated[Kills, tyro.conf.subcommand("kills")]
        | Annotated[Ranks, tyro.conf.subcommand("ranks")]
        | Annotated[Faults, tyro.conf.subcommand("faults")]
    )
    chosen: Any = parsed(commands, __doc__, argv)  # type: ignore[arg-type, unused-ignore]
    drills: dict[type, Callable[[Any], int]] = {Kills: kills, Ranks: ranks_table, Faults: faults}
    return drills[type(chosen)](chosen)


if __name__ == "__main__":
    sys.exit(main())
