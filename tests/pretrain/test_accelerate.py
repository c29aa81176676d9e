"""The configurations in pretrain/accelerate are what accelerate reads."""

from __future__ import annotations

from pathlib import Path

import pytest

EXPECTED = {"cpu": ("NO", 1, 1), "gpu1": ("NO", 1, 1), "gpu8": ("MULTI_GPU", 8, 1), "nodes": ("MULTI_GPU", 32, 4)}
EXPECTED |= {"fsdp": ("FSDP", 8, 1)}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_configuration_is_read_and_means_what_its_name_says(repo: Path, name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(repo / "pretrain" / "accelerate" / f"{name}.yaml"))
    kind = getattr(config.distributed_type, "value", config.distributed_type)
    assert (str(kind), config.num_processes, config.num_machines) == EXPECTED[name]
    assert config.mixed_precision == ("no" if name == "cpu" else "bf16")
    if name == "fsdp":
        from accelerate.utils import FullyShardedDataParallelPlugin  # its settings are known words

        assert config.fsdp_config["fsdp_version"] == 2
        assert FullyShardedDataParallelPlugin(fsdp_version=2, reshard_after_forward=True).reshard_after_forward is True


def test_every_configuration_is_listed_here(repo: Path) -> None:
    assert {p.stem for p in (repo / "pretrain" / "accelerate").glob("*.yaml")} == set(EXPECTED)
