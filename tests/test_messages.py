"""The flags that messages and examples name are flags that a command has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vtr.completion import flags_of
from vtr.eval.ablate import AblateSettings
from vtr.eval.efficiency import EfficiencySettings
from vtr.moments import MomentsSettings
from vtr.pretrain.encoder_ablation import EncoderSettings
from vtr.pretrain.plan import PlanSettings
from vtr.verbs import VERBS

FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![\w-])")
# Of programs that are not ours, and of modules of ours without a settings class or with a package that may be absent.
OTHERS = {
    "torchrun": "--nproc-per-node --nnodes --node-rank --master-addr --master-port --max-restarts --monitor-interval --standalone",
    "accelerate launch": "--num-processes --config-file",
    "python -m vtr.eval.metrics": "--truth --json",
    "python -m vtr.data.direction": "--flip",
    "python -m vtr.eval.mteb": "--tasks",
    "tar": "--concatenate",
    "every command": "--help --version",
}


def fields_of(settings: type) -> set[str]:
    return {f"--{name.replace('_', '-')}" for name in settings.__dataclass_fields__}


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """The flags of every verb."""
    return {verb: {*flags_of(verb)} for verb in VERBS}


def texts(repo: Path) -> Iterator[tuple[str, str]]:
    """Every string literal of the commands' code, with its file and line."""
    for folder in ("vtr", "pretrain", "eval"):
        for path in sorted((repo / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                # A style sheet's variables look like flags.
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and "var(--" not in node.value:
                    yield f"{path.relative_to(repo)}:{node.lineno}", node.value


def test_every_flag_that_a_string_names_is_a_flag_of_some_command(repo: Path, flags: dict[str, set[str]]) -> None:
    known = set().union(*flags.values(), *(others.split() for others in OTHERS.values()))
    for settings in (AblateSettings, EfficiencySettings, EncoderSettings, MomentsSettings, PlanSettings):
        known |= fields_of(settings)
    named = {flag: place for place, text in texts(repo) for flag in FLAG.findall(text)}
    assert len(named) > 50, "the search has found next to nothing: it is broken"
    assert {flag: place for flag, place in named.items() if flag not in known} == {}


def test_a_flag_named_with_its_verb_is_a_flag_of_that_verb(repo: Path, flags: dict[str, set[str]]) -> None:
    verbs = "|".join(sorted(map(re.escape, VERBS), key=len, reverse=True))
    command = re.compile(rf"(?<![\w.])vtr ({verbs})(?![\w-])([^\n`;:)]*)")
    seen, wrong = 0, []
    for place, text in texts(repo):
        for verb, rest in command.findall(text):
            for flag in FLAG.findall(rest):
                seen += 1
                if flag not in flags[verb] | {"--help"}:
                    wrong.append(f"{place}: vtr {verb} has no {flag}")
    assert seen > 10, "the search has found next to nothing: it is broken"
    assert wrong == []
