import threading

import pytest
from live_runs import named

from gemma_tune.errors import RunError
from gemma_tune.runs.folder import RUN_ID, RunFolder, create_run, find_run, list_runs, read_json, write_json


@pytest.fixture(autouse=True)
def runs(home):
    (home / "runs").mkdir(parents=True)
    return home / "runs"


def test_a_run_folder_is_whole_when_it_appears(runs):
    seen = set()
    stop = threading.Event()

    def watch():
        while not stop.is_set():
            seen.update(
                (folder.id, folder.events_path.exists(), folder.provenance_path.exists())
                for folder in list_runs()
            )

    thread = threading.Thread(target=watch)
    thread.start()
    ids = [create_run(named(f"run {number}")).id for number in range(5)]
    stop.set()
    thread.join()
    assert all(events and provenance for _, events, provenance in seen)
    assert [folder.id for folder in list_runs()] == ids[::-1]


@pytest.mark.parametrize("name", ["My run. V-2", "ÄÖ", "a" * 60, "..", "CON"])
def test_an_id_is_a_plain_folder_name_whatever_the_run_is_called(name):
    config = named().model_copy(update={"output": named().output.model_copy(update={"name": name})})
    assert RUN_ID.fullmatch(create_run(config).id)


def test_a_run_is_found_by_id_beginning_and_latest():
    first, second = create_run(named("one")), create_run(named("two"))
    assert find_run(first.id) == first
    assert find_run(second.id[:-2]) == second
    assert find_run("latest") == second
    with pytest.raises(RunError, match="2 runs begin like this"):
        find_run(first.id[:8])


@pytest.mark.parametrize("name", ["", "..", "../runs", "/", "nothing", "\x00", "x" * 5000, "latest "])
def test_a_name_of_no_run_is_refused_with_what_there_is(name):
    create_run(named())
    with pytest.raises(RunError, match="no such run"):
        find_run(name)


def test_latest_of_no_runs_says_that_there_is_none():
    with pytest.raises(RunError, match="start one"):
        find_run("latest")


def test_the_provenance_names_versions_machine_and_seed():
    provenance = create_run(named()).provenance()
    assert provenance["libraries"]["transformers"].startswith("5.")
    assert provenance["seed"] == 42
    assert provenance["memory_bytes"] > 10**8
    assert provenance["start_key"] == named().digest()


def test_json_is_replaced_at_once_and_the_first_wins_where_asked(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"mode": "keep"}, replace=False)
    with pytest.raises(FileExistsError):
        write_json(path, {"mode": "other"}, replace=False)
    write_json(path, {"mode": "now"})
    assert read_json(path) == {"mode": "now"}
    path.write_text("")
    assert read_json(path) is None
    assert RunFolder(tmp_path).stop_mode() is None
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_a_full_disk_leaves_no_half_run_behind(runs, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gemma_tune.runs.folder.write_json", full)
    with pytest.raises(RunError, match="disk is full"):
        create_run(named())
    assert list(runs.iterdir()) == []
