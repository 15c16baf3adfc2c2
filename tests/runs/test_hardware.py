import json
import os
import types

import psutil
import pytest

from gemma_tune.runs import hardware


def test_a_sample_says_memory_load_and_the_workers_share_in_plain_json():
    sample = hardware.Sampler().sample([psutil.Process()])
    assert json.loads(json.dumps(sample)) == sample
    assert 0 < sample["memory_used_bytes"] < sample["memory_total_bytes"]
    assert sample["worker_rss_bytes"] > 10**6
    assert 0 <= sample["cpu_percent"] <= 100


def test_a_process_that_ended_counts_nothing():
    gone = psutil.Process()
    gone = types.SimpleNamespace(memory_info=lambda: (_ for _ in ()).throw(psutil.NoSuchProcess(1)))
    assert hardware.Sampler().sample([gone])["worker_rss_bytes"] == 0


@pytest.fixture
def one_gpu(monkeypatch):
    import pynvml

    readings = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: "NVIDIA Test",
        "nvmlDeviceGetMemoryInfo": lambda handle: types.SimpleNamespace(used=5, total=10),
        "nvmlDeviceGetUtilizationRates": lambda handle: types.SimpleNamespace(gpu=70),
        "nvmlDeviceGetTemperature": lambda handle, sensor: 60,
        "nvmlDeviceGetPowerUsage": refuse(pynvml.NVML_ERROR_NOT_SUPPORTED),
    }
    for name, reading in readings.items():
        monkeypatch.setattr(pynvml, name, reading)
    return pynvml


def refuse(code):
    import pynvml

    def reading(*_):
        raise pynvml.NVMLError(code)

    return reading


def test_a_gpu_is_sampled_and_what_it_does_not_tell_is_unknown(one_gpu):
    gpu = hardware.Sampler().sample([])["gpus"][0]
    assert (gpu["name"], gpu["utilization_percent"], gpu["power_watts"]) == ("NVIDIA Test", 70, None)
    assert (gpu["memory_used_bytes"], gpu["memory_total_bytes"], gpu["temperature_celsius"]) == (5, 10, 60)


def test_a_gpu_that_falls_silent_is_told_once_and_stops_nothing(one_gpu, monkeypatch):
    sampler = hardware.Sampler()
    monkeypatch.setattr(one_gpu, "nvmlDeviceGetMemoryInfo", refuse(one_gpu.NVML_ERROR_GPU_IS_LOST))
    assert sampler.sample([])["gpus"] == []
    assert "no longer" in sampler.warning
    sampler.warning = None
    assert sampler.sample([])["gpus"] == []
    assert sampler.warning is None


def test_a_broken_driver_is_told_and_a_missing_one_is_not(one_gpu, monkeypatch):
    monkeypatch.setattr(one_gpu, "nvmlInit", refuse(one_gpu.NVML_ERROR_LIB_RM_VERSION_MISMATCH))
    assert "cannot be read" in hardware.Sampler().warning
    monkeypatch.setattr(one_gpu, "nvmlInit", refuse(one_gpu.NVML_ERROR_LIBRARY_NOT_FOUND))
    assert hardware.Sampler().warning is None


def test_the_kernels_kills_are_counted_in_the_container_first(monkeypatch, tmp_path):
    container, machine = tmp_path / "memory.events", tmp_path / "vmstat"
    monkeypatch.setattr(hardware, "OOM_COUNTERS", (container, machine))
    assert hardware.oom_kills() is None
    machine.write_text("nr_free_pages 5\noom_kill 7\n")
    assert hardware.oom_kills() == 7
    container.write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert hardware.oom_kills() == 2


def test_a_container_quota_limits_the_threads(monkeypatch, tmp_path):
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(hardware, "CGROUP_CPU", quota)
    everything = hardware.usable_cores()
    quota.write_text("max 100000\n")
    assert hardware.usable_cores() == everything
    quota.write_text("100000 100000\n")
    assert hardware.usable_cores() == 1
    assert everything <= len(os.sched_getaffinity(0))
