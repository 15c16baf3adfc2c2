import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from gemma_tune.runs.events import EventWriter, read_events

WRITER = """
import sys, time
from gemma_tune.runs.events import EventWriter
writer = EventWriter(sys.argv[1], sys.argv[2])
print("ready", flush=True)
while True:
    for _ in range(20):
        writer.write("metrics", step=1, text="ä🙂" * 100)
    time.sleep(0.002)
"""


def write_forever(folder, by):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), by], stdout=subprocess.PIPE)
    writer.stdout.readline()
    return writer


def test_an_event_carries_its_envelope_and_reads_back(tmp_path):
    with EventWriter(tmp_path, "worker-1", clock=lambda: 12.5) as writer:
        writer.write("metrics", step=3, loss=0.5)
        writer.write("warning", message="ä\u2028🙂")
    events, offset = read_events(writer.path)
    assert events == [
        {"seq": 1, "by": "worker-1", "time": 12.5, "kind": "metrics", "step": 3, "loss": 0.5},
        {"seq": 2, "by": "worker-1", "time": 12.5, "kind": "warning", "message": "ä\u2028🙂"},
    ]
    assert read_events(writer.path, offset) == ([], offset)


def test_there_is_no_event_where_there_is_no_file(tmp_path):
    assert read_events(tmp_path / "events.jsonl") == ([], 0)


def test_not_a_number_is_written_as_null_and_library_numbers_as_numbers(tmp_path):
    numpy = pytest.importorskip("numpy")
    with EventWriter(tmp_path, "w-1") as writer:
        writer.write(
            "metrics",
            loss=float("nan"),
            grad_norm=numpy.float32(0.5),
            deep=[{"x": float("inf")}],
            path=tmp_path,
        )
    line = writer.path.read_text()
    assert "NaN" not in line
    assert "Infinity" not in line
    event = read_events(writer.path)[0][0]
    assert (event["loss"], event["grad_norm"], event["deep"]) == (None, 0.5, [{"x": None}])
    assert event["path"] == str(tmp_path)


def test_a_torn_last_line_waits_and_a_torn_line_within_is_reported(tmp_path):
    with EventWriter(tmp_path, "w-1") as writer:
        writer.write("phase", name="loading")
        whole = writer.path.read_bytes()
        writer.path.write_bytes(whole + b'\n{"seq": 2, "by": "w')
        events, offset = read_events(writer.path)
        assert [event["kind"] for event in events] == ["phase"]
        writer.write("phase", name="training")
    more, _ = read_events(writer.path, offset)
    assert [event["kind"] for event in more] == ["unreadable", "phase"]


def test_lines_that_are_no_events_are_reported_not_raised(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'[1]\n"x"\n{"kind": 5}\n\xff\xfe\n{"kind":"phase"}\n')
    assert [event["kind"] for event in read_events(path)[0]] == ["unreadable"] * 4 + ["phase"]


def test_two_writers_of_one_process_share_one_count(tmp_path):
    with EventWriter(tmp_path, "app-1") as one, EventWriter(tmp_path, "app-1") as two:
        threads = [
            threading.Thread(target=lambda w=writer: [w.write("x") for _ in range(200)])
            for writer in (one, two) * 2
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [event["seq"] for event in read_events(one.path)[0]] == list(range(1, 801))


def test_no_event_is_torn_or_lost_between_processes_though_some_are_killed(tmp_path):
    """Four writers, two of them killed in mid-write and replaced, three readers following by offset."""
    stop, logs = threading.Event(), [[], [], []]

    def follow(log):
        offset = 0
        while not stop.is_set():
            events, offset = read_events(tmp_path / "events.jsonl", offset)
            log += events
            time.sleep(0.005)
        log += read_events(tmp_path / "events.jsonl", offset)[0]

    readers = [threading.Thread(target=follow, args=(log,)) for log in logs]
    for reader in readers:
        reader.start()
    writers = [write_forever(tmp_path, f"w-{number}") for number in range(2)]
    for number in range(2, 8):
        victim = write_forever(tmp_path, f"w-{number}")
        time.sleep(0.03)
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
    for writer in writers:
        writer.kill()
        writer.wait()
    stop.set()
    for reader in readers:
        reader.join()
    assert logs[0] == logs[1] == logs[2]
    by_writer = {}
    for event in logs[0]:
        assert event["kind"] == "metrics", event  # a local file system never tears an O_APPEND write
        by_writer.setdefault(event["by"], []).append(event["seq"])
    assert len(by_writer) == 8
    for numbers in by_writer.values():
        assert numbers == list(range(1, len(numbers) + 1))


def test_a_short_write_is_written_again_whole(tmp_path, monkeypatch):
    real, calls = os.write, []

    def short_once(descriptor, data):
        calls.append(len(data))
        return real(descriptor, data[:20] if len(calls) == 1 else data)

    with EventWriter(tmp_path, "w-1") as writer:
        monkeypatch.setattr(os, "write", short_once)
        writer.write("phase", name="loading")
    monkeypatch.undo()
    assert [event["kind"] for event in read_events(writer.path)[0]] == ["unreadable", "phase"]


def test_a_full_disk_is_said_not_swallowed(tmp_path, monkeypatch):
    with EventWriter(tmp_path, "w-1") as writer:
        monkeypatch.setattr(os, "write", lambda descriptor, data: 0)
        with pytest.raises(OSError, match="No space left"):
            writer.write("phase")


def test_lines_are_ascii_json(tmp_path):
    with EventWriter(tmp_path, "w-1") as writer:
        writer.write("sample", prompt="\ud800 lone surrogate")
    assert json.loads(writer.path.read_bytes().decode("ascii"))["prompt"].endswith("lone surrogate")
