"""What Accelerate itself makes of the files that we write for it."""

import json
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from gemma_tune.config import parse
from gemma_tune.runs.sharing import launch_files


def launched(tmp_path: Path, **devices):
    """The launcher's arguments, read by Accelerate from our files."""
    path = tmp_path / "accelerate.json"
    for file, content in launch_files(parse({"devices": devices}).model_dump()["devices"], path).items():
        file.write_text(json.dumps(content))
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "-m", "some.module"])
    return _validate_launch_command(arguments)[0]


def test_ddp_on_one_host(tmp_path):
    arguments = launched(tmp_path, num_processes=3)
    assert arguments.multi_gpu and not arguments.use_fsdp
    environment = prepare_multi_gpu_env(arguments)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert arguments.nproc_per_node == "3"
    assert int(arguments.master_port) > 0  # a free one was found


def test_several_hosts_count_the_processes_of_all(tmp_path):
    arguments = launched(
        tmp_path, num_processes=4, num_machines=3, machine_rank=2, main_process_ip="10.0.0.7",
        main_process_port=29_777,
    )  # fmt: skip
    prepare_multi_gpu_env(arguments)
    assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("3", "4", 2)
    assert (arguments.rdzv_backend, arguments.rdzv_endpoint) == ("static", "10.0.0.7:29777")


def test_one_process_on_each_of_two_hosts_is_no_single_process(tmp_path):
    arguments = launched(tmp_path, num_machines=2, main_process_ip="10.0.0.7")
    assert arguments.multi_gpu
    assert arguments.num_processes == 2


def test_fsdp_is_version_2_and_saves_whole_models(tmp_path, monkeypatch):
    arguments = launched(tmp_path, num_processes=2, distributed_type="fsdp")
    assert arguments.use_fsdp and not arguments.multi_gpu
    environment = prepare_multi_gpu_env(arguments)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    for name, value in environment.items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    from accelerate import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    assert "transformer_auto_wrap_policy" in str(plugin.auto_wrap_policy)
    assert not plugin.cpu_ram_efficient_loading


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_reads_one_file_that_leaves_the_rest_to_trainer(tmp_path, stage):
    arguments = launched(tmp_path, num_processes=2, distributed_type="deepspeed", zero_stage=stage)
    assert arguments.use_deepspeed
    arguments.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(arguments)
    config = json.loads(Path(environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"]).read_text())
    assert config["zero_optimization"]["stage"] == stage
    assert config["bf16"]["enabled"] == "auto"
