import json
import sys

import pytest

from gemma_tune.config import parse
from gemma_tune.runs import hardware, launch, sharing
from gemma_tune.runs.folder import RunFolder

WORKER = ["-m", "gemma_tune.workers.train"]


def values(**devices):
    return parse({"devices": devices}).model_dump()


@pytest.fixture
def gpus(monkeypatch):
    """So many GPUs seem to be there."""

    def show(count):
        monkeypatch.setattr(hardware.Sampler, "gpus", lambda self: [{"index": i} for i in range(count)])

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv(launch.WORKER_COMMAND_VARIABLE, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return show


def environment(tmp_path, **devices):
    return launch.worker_environment(tmp_path, values(**devices))


def test_one_process_is_started_directly_with_accelerates_variables(gpus, tmp_path):
    gpus(0)
    assert launch.worker_command(RunFolder(tmp_path), values()) == [sys.executable, *WORKER]
    assert launch.worker_command(RunFolder(tmp_path), {}) == [sys.executable, *WORKER]
    assert list(tmp_path.iterdir()) == []
    assert environment(tmp_path)["ACCELERATE_USE_CPU"] == "True"
    gpus(1)
    assert environment(tmp_path)["ACCELERATE_USE_CPU"] == "False"


def test_several_processes_are_started_by_accelerate_with_a_file(gpus, tmp_path):
    gpus(0)
    command = launch.worker_command(RunFolder(tmp_path), values(num_processes=2))
    config = str(tmp_path / "accelerate.json")
    assert command == [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, *WORKER]
    assert json.loads((tmp_path / "accelerate.json").read_text())["num_processes"] == 2
    assert "ACCELERATE_USE_CPU" not in environment(tmp_path, num_processes=2)


def test_the_worker_sees_as_many_gpus_as_it_has_processes(gpus, tmp_path, monkeypatch):
    gpus(1)
    assert "CUDA_VISIBLE_DEVICES" not in environment(tmp_path)
    gpus(4)
    assert environment(tmp_path)["CUDA_VISIBLE_DEVICES"] == "0"
    assert environment(tmp_path, num_processes=2)["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert "CUDA_VISIBLE_DEVICES" not in environment(tmp_path, num_processes=4)
    assert environment(tmp_path, num_processes=2, gpu_ids="3,1")["CUDA_VISIBLE_DEVICES"] == "3,1"
    assert environment(tmp_path, gpu_ids="2")["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert environment(tmp_path)["CUDA_VISIBLE_DEVICES"] == "2"


def test_the_cores_are_shared_between_the_processes(gpus, tmp_path, monkeypatch):
    gpus(0)
    monkeypatch.setattr(launch, "usable_cores", lambda: 8)
    assert environment(tmp_path)["OMP_NUM_THREADS"] == "8"
    assert environment(tmp_path, num_processes=3)["OMP_NUM_THREADS"] == "2"
    assert environment(tmp_path, num_processes=16)["OMP_NUM_THREADS"] == "1"


def test_the_faster_allocator_is_preloaded_where_it_is_installed(gpus, tmp_path, monkeypatch):
    gpus(0)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr(launch, "_tcmalloc", lambda: "libtcmalloc_minimal.so.4")
    assert environment(tmp_path)["LD_PRELOAD"] == "libtcmalloc_minimal.so.4"
    monkeypatch.setenv("LD_PRELOAD", "libother.so")
    assert environment(tmp_path)["LD_PRELOAD"] == "libtcmalloc_minimal.so.4:libother.so"
    monkeypatch.setenv("LD_PRELOAD", "libjemalloc.so.2")
    assert environment(tmp_path)["LD_PRELOAD"] == "libjemalloc.so.2"
    monkeypatch.delenv("LD_PRELOAD")
    monkeypatch.setenv(launch.ALLOCATOR_VARIABLE, "0")
    assert "LD_PRELOAD" not in environment(tmp_path)
    monkeypatch.delenv(launch.ALLOCATOR_VARIABLE)
    monkeypatch.setattr(launch, "_tcmalloc", lambda: None)
    assert "LD_PRELOAD" not in environment(tmp_path)


def test_lora_does_without_huge_pages_where_tcmalloc_is_preloaded(gpus, tmp_path, monkeypatch):
    def asked(**method):
        run = parse({"method": method}).model_dump()
        return launch.worker_environment(tmp_path, run).get(launch.HUGE_PAGES_VARIABLE)

    gpus(0)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.delenv(launch.HUGE_PAGES_VARIABLE, raising=False)
    monkeypatch.setattr(launch, "_tcmalloc", lambda: "libtcmalloc_minimal.so.4")
    assert [asked(type=name) for name in ("lora", "qlora", "full")] == ["0", None, None]
    monkeypatch.setenv(launch.HUGE_PAGES_VARIABLE, "1")
    assert asked(type="lora") == "1"
    monkeypatch.delenv(launch.HUGE_PAGES_VARIABLE)
    monkeypatch.setattr(launch, "_tcmalloc", lambda: None)
    assert asked(type="lora") is None


def test_the_allocators_name_is_read_from_the_list_of_libraries():
    listed = "\tlibtcmalloc_minimal_debug.so.4 (libc6,x86-64) => /a\n\tlibtcmalloc_minimal.so.4 (libc6,x86-64) => /b\n"
    assert launch.ALLOCATOR.search(listed)[1] == "libtcmalloc_minimal.so.4"
    assert launch.ALLOCATOR.search("\tlibtcmalloc.so.4 (libc6,x86-64) => /c\n")[1] == "libtcmalloc.so.4"
    assert launch.ALLOCATOR.search("\tlibc.so.6 (libc6,x86-64) => /lib/libc.so.6\n") is None


def test_each_host_has_its_command():
    assert launch.host_commands(parse({})) == ["gemma-tune train config.yaml"]
    config = parse({"devices": {"num_machines": 2, "main_process_ip": "10.0.0.1"}})
    assert launch.host_commands(config, "my runs/a.yaml") == [
        "gemma-tune train 'my runs/a.yaml' devices.machine_rank=0",
        "gemma-tune train 'my runs/a.yaml' devices.machine_rank=1",
    ]


@pytest.mark.parametrize(
    ("gpu_count", "devices", "where"),
    [
        (0, {"num_processes": 2}, None),
        (0, {"num_processes": 2, "distributed_type": "fsdp"}, "devices.distributed_type"),
        (0, {"num_processes": 2, "distributed_type": "deepspeed"}, "devices.distributed_type"),
        (0, {"distributed_type": "fsdp"}, None),  # one process has nobody to share with
        (2, {"num_processes": 2, "distributed_type": "fsdp"}, None),
        (2, {"num_processes": 2, "distributed_type": "deepspeed"}, "devices.distributed_type"),
        (2, {"num_processes": 3}, "devices.num_processes"),
        (2, {"gpu_ids": "1"}, None),
        (2, {"gpu_ids": "2"}, "devices.gpu_ids"),
        (0, {"gpu_ids": "0"}, "devices.gpu_ids"),
    ],
)
def test_what_this_host_lacks_is_said_before_the_start(gpus, monkeypatch, gpu_count, devices, where):
    gpus(gpu_count)
    monkeypatch.setattr(sharing.importlib.util, "find_spec", lambda name: None)  # no deepspeed
    faults = sharing.host_faults(parse({"devices": devices}))
    assert [fault.where for fault in faults] == ([where] if where else [])
    assert all(fault.rule and fault.way_out for fault in faults)


def test_an_adapter_start_that_needs_a_gpu_is_refused_before_the_run():
    wanted = parse({"method": {"init_lora_weights": "loftq"}})
    assert [fault.where for fault in sharing.host_faults(wanted)] == ["method.init_lora_weights"]
