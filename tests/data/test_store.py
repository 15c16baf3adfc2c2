import json
import os
import shutil
import signal
import threading

import pytest
from pictures import picture

from gemma_tune.data import parallel, store
from gemma_tune.data.formats import recognise
from gemma_tune.data.parallel import Cancelled, unwatched
from gemma_tune.data.rows import Opened, values_in_chunks
from gemma_tune.data.sources import first_rows, open_source
from gemma_tune.data.store import FILES, META, Part, Store, stored
from gemma_tune.errors import DataError

PAIRS = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(40)]
BROKEN = [{"prompt": "x", "completion": ""}, {"prompt": "x", "completion": 7}]


def part_of(source: str | list, **how) -> Part:
    """A source as it is recognised; a list is one that gives its rows seven at a time."""
    if isinstance(source, list):
        opened = Opened("rows", lambda: values_in_chunks(source, size=7), lambda: json.dumps(source))
    else:
        opened = open_source(source)
    return Part(opened, recognise(first_rows(opened, 200)), **how)


def cached_names(folder) -> set[str]:
    return {path.name for path in (folder / "cache").glob("*")} | {
        path.name for path in (folder / "cache").glob(".*")
    }


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(parallel, "WORTH_IT_BYTES", 0)
    monkeypatch.setattr(parallel, "cores", lambda: 2)


# ---- what is kept ----------------------------------------------------------------------------------------------------
def test_rows_come_back_whole_by_their_index(write):
    rows = [*PAIRS[:3], BROKEN[0], *PAIRS[3:]]
    found = stored([part_of(write("a.jsonl", rows))], unwatched)
    assert len(found) == 40 and found.rejected_count == 1
    assert found.facts["number"].tolist() == [n for n in range(1, 42) if n != 4]
    row = found.row(39)
    assert row.number == 41 and [turn["content"] for turn in row.messages] == ["question 39", "answer 39"]
    assert [one.number for one in found.rows([5, 0, 5])] == [7, 1, 7]
    for size in (1, 1000, 1 << 20):
        lines = b"".join(found.blocks(size)).split(b"\n")[:-1]
        assert [json.loads(line)["number"] for line in lines] == found.facts["number"].tolist()
        assert all(block.endswith(b"\n") for block in found.blocks(size))
    assert max(map(len, found.blocks(1000))) <= 1000


def test_rejected_rows_keep_their_reason_and_the_fixes_that_would_help(write):
    double = {"messages": [{"role": "user", "content": "a"}] * 2 + [{"role": "assistant", "content": "b"}]}
    good = {"messages": double["messages"][1:]}
    found = stored([part_of(write("a.jsonl", [good, double, {"messages": []}]))], unwatched)
    first, second = found.rejected()
    assert (first.number, first.fixes, first.rule) == (2, ("merge_turns",), "Two user turns in a row.")
    assert first.after == "user: a\n\na\nassistant: b" and json.loads(first.before) == double
    assert (second.number, second.fixes, second.file) == (3, (), "")


def test_lines_that_cannot_be_read_are_rejected_among_the_others(write):
    lines = [json.dumps(PAIRS[0]), "{", "[1]", json.dumps(BROKEN[0]), json.dumps(PAIRS[1])]
    found = stored([part_of(write("a.jsonl", "\n".join(lines)))], unwatched)
    assert [one.number for one in found.rejected()] == [2, 3, 4]
    assert found.facts["number"].tolist() == [1, 5]


def test_a_source_without_any_usable_row_is_an_empty_store():
    part = Part(part_of(PAIRS).opened, part_of([{"text": "a"}]).schema)
    found = stored([part], unwatched)
    assert len(found) == 0 and found.rejected_count == 40 == len(list(found.rejected()))
    assert list(found.blocks()) == [] and found.sketches.shape == (0, store.SKETCH)


def test_several_sources_are_one_store_with_the_label_of_each(folder, write):
    first, second = write("one.jsonl", [*PAIRS[:2], BROKEN[0]]), write("two.csv", "frage,antwort\na,b\nc,\n")
    parts = [part_of(first), part_of(second, held_back=True)]
    found = stored(parts, unwatched)
    assert found.facts["part"].tolist() == [0, 0, 1] and found.facts["held_back"].tolist() == [
        False,
        False,
        True,
    ]
    assert [found.files[place] for place in found.facts["file"]] == ["one.jsonl", "one.jsonl", "two.csv"]
    assert [row.file for row in found.rows(range(3))] == ["one.jsonl", "one.jsonl", "two.csv"]
    rejected = list(found.rejected())
    assert [(one.file, one.number, one.side) for one in rejected] == [
        ("one.jsonl", 3, "train"),
        ("two.csv", 2, "validation"),
    ]
    assert str(rejected[1].as_fault()).startswith("two.csv row 2, antwort: ")


def test_several_files_of_one_source_are_told_apart_by_their_name(folder, write):
    (folder / "many").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        write(f"many/{name}", PAIRS[:2])
    found = stored([part_of(str(folder / "many"))], unwatched)
    assert [found.files[place] for place in found.facts["file"]] == [
        "a.jsonl",
        "a.jsonl",
        "b.jsonl",
        "b.jsonl",
    ]
    assert found.facts["number"].tolist() == [1, 2, 1, 2]


# ---- one process or many ---------------------------------------------------------------------------------------------
def contents(found: Store) -> dict[str, bytes]:
    return {name: (found.folder / name).read_bytes() for name in (*FILES, META)}


def test_processes_write_the_same_bytes_as_one(folder, write, monkeypatch):
    source = [*PAIRS, *BROKEN, *({"prompt": "p" * n, "completion": "一隻貓"} for n in range(1, 30))]
    parts = [part_of(source), part_of(write("b.jsonl", PAIRS[:9]))]
    inline = contents(stored(parts, unwatched))
    shutil.rmtree(folder / "cache")
    monkeypatch.setattr(parallel, "WORTH_IT_BYTES", 0)
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    monkeypatch.setattr(store, "convert_piece", in_another_process(os.getpid()))
    assert contents(stored(parts, unwatched)) == inline


class in_another_process:  # noqa: N801  a function that a spawned process can be given
    """`convert_piece`, where it is not done in the process of that id."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __call__(self, piece, parts, images):
        assert os.getpid() != self.pid
        return CONVERT(piece, parts, images)


CONVERT = store.convert_piece


def kill(piece, parts, images):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_said_and_leaves_nothing_behind(folder, monkeypatch, two_cores):
    monkeypatch.setattr(store, "convert_piece", kill)
    with pytest.raises(DataError, match="ended by the system"):
        stored([part_of(PAIRS)], unwatched)
    assert cached_names(folder) == set()
    monkeypatch.setattr(store, "convert_piece", CONVERT)
    assert len(stored([part_of(PAIRS)], unwatched)) == 40


# ---- the cache -------------------------------------------------------------------------------------------------------
def test_what_was_converted_once_is_found_again_without_work(folder, write, monkeypatch):
    source = write("a.jsonl", PAIRS)
    first = stored([part_of(source)], unwatched)
    monkeypatch.setattr(store, "convert_piece", pytest.fail)
    again = stored([part_of(source)], unwatched)
    assert again.folder == first.folder and again.key == first.key and len(again) == 40
    copy = write("another name.jsonl", PAIRS)
    assert stored([part_of(copy)], unwatched).folder == first.folder, "the same bytes under another name"


def test_another_file_schema_fix_or_side_is_converted_anew(folder, write):
    source = write("a.jsonl", [pair | {"other": "x", "side": "train"} for pair in PAIRS])
    plain = part_of(source)
    mapped = Part(plain.opened, recognise(first_rows(plain.opened), "auto", {"completion": "other"}))
    parts = [
        [plain], [mapped], [part_of(source, fixes=("strip",))], [part_of(source, split_column="side")],
        [part_of(source, held_back=True)], [plain, plain], [part_of(write("b.jsonl", PAIRS[:-1]))],
    ]  # fmt: skip
    assert len({stored(one, unwatched).key for one in parts}) == len(parts)
    fixes = [part_of(source, fixes=fixes) for fixes in (("strip", "merge_turns"), ("merge_turns", "strip"))]
    assert stored(fixes[:1], unwatched).key == stored(fixes[1:], unwatched).key
    heavy = part_of(source, weight=3.0)
    assert stored([heavy], unwatched).key == stored([plain], unwatched).key, "a weight changes no row"


def test_a_file_that_was_changed_is_read_anew(folder, write):
    source = write("a.jsonl", PAIRS)
    before = stored([part_of(source)], unwatched)
    write("a.jsonl", [{"prompt": "new", "completion": "row"}])
    assert len(stored([part_of(source)], unwatched)) == 1 and len(before) == 40


def test_progress_is_told_as_it_goes_and_ends_at_the_total(write):
    source = write("a.jsonl", PAIRS)
    told = []
    stored([part_of(source)], lambda phase, done, total: told.append((phase, done, total)))
    size = len(open(source, "rb").read())  # noqa: SIM115, PTH123
    assert {(phase, total) for phase, _, total in told} == {("reading", size)}
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told) and told[-1][1] == size


@pytest.mark.parametrize("processes", [False, True])
def test_a_cancelled_reading_leaves_no_half_folder_and_the_next_one_works(folder, request, processes):
    if processes:
        request.getfixturevalue("two_cores")
    seen = []

    def watch(phase: str, done: int, total: int | None) -> None:
        seen.append(done)
        if len(seen) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        stored([part_of(PAIRS)], watch)
    assert cached_names(folder) == set()
    assert len(stored([part_of(PAIRS)], unwatched)) == 40


def test_a_source_that_breaks_off_leaves_no_half_folder(folder):
    def broken():
        yield from values_in_chunks(PAIRS, size=7)
        raise DataError.at("a.json", None, "The JSON breaks off.")

    opened = Opened("rows", broken, lambda: "broken")
    with pytest.raises(DataError, match="breaks off"):
        stored([Part(opened, part_of(PAIRS).schema)], unwatched)
    assert cached_names(folder) == set()


def test_a_disk_that_takes_nothing_is_said_with_the_way_out(folder, monkeypatch):
    (folder / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cannot be written to this disk.*GEMMA_TUNE_HOME"):
        stored([part_of(PAIRS)], unwatched)


def test_two_that_prepare_the_same_rows_at_once_both_have_them(folder):
    found, barrier = [], threading.Barrier(2)

    def watch(phase: str, done: int, total: int | None) -> None:
        if done == 0 and not barrier.broken:
            barrier.wait(10)

    part = part_of(PAIRS)
    both = [threading.Thread(target=lambda: found.append(stored([part], watch))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(found) == 2 and found[0].folder == found[1].folder and len(found[1]) == 40
    assert cached_names(folder) == {found[0].folder.name}


def test_a_folder_that_lost_its_end_is_written_anew(folder):
    first = stored([part_of(PAIRS)], unwatched)
    (first.folder / META).unlink()
    assert len(stored([part_of(PAIRS)], unwatched)) == 40


def test_the_cache_forgets_what_was_used_longest_ago_but_never_what_is_asked_for(folder, monkeypatch):
    sources = [[{"prompt": f"q {name} {n}", "completion": "a"} for n in range(30)] for name in "abc"]
    stores = [stored([part_of(source)], unwatched) for source in sources]
    for age, one in zip((300, 200, 100), stores, strict=True):
        os.utime(one.folder, (one.folder.stat().st_atime - age, one.folder.stat().st_mtime - age))
    stored([part_of(sources[0])], unwatched)  # used again, so the second is the oldest now
    size = sum(path.stat().st_size for path in stores[0].folder.iterdir())
    monkeypatch.setattr(store, "CACHE_BYTES", int(3.5 * size))
    fourth = stored([part_of([{"prompt": f"q d {n}", "completion": "a"} for n in range(30)])], unwatched)
    assert cached_names(folder) == {stores[0].folder.name, stores[2].folder.name, fourth.folder.name}
    monkeypatch.setattr(store, "CACHE_BYTES", 1)
    fifth = stored([part_of(PAIRS)], unwatched)
    assert cached_names(folder) == {fifth.folder.name} and len(fifth) == 40


def test_what_a_killed_process_left_in_the_cache_is_cleared_away(folder):
    left = folder / "cache" / ".rows-abc.4242-1"
    fresh = folder / "cache" / ".rows-def.4242-2"
    for one in (left, fresh):
        one.mkdir(parents=True)
        (one / "rows.jsonl").write_text("half")
    for path in (left / "rows.jsonl", left):
        os.utime(path, (0, 0))
    found = stored([part_of(PAIRS)], unwatched)
    assert cached_names(folder) == {found.folder.name, fresh.name}


# ---- the copy of a run -----------------------------------------------------------------------------------------------
def test_a_run_has_its_own_copy_that_outlives_the_cache(folder):
    found = stored([part_of([*PAIRS, *BROKEN])], unwatched)
    copy = found.copy_to(folder / "run" / "data")
    for name in (*FILES, META):
        assert (copy.folder / name).stat().st_ino == (found.folder / name).stat().st_ino, (
            "no second copy on the disk"
        )
    expected = contents(found)
    assert contents(found.copy_to(copy.folder)) == expected and not list(copy.folder.glob(".*")), (
        "a second time"
    )
    shutil.rmtree(folder / "cache")
    assert contents(copy) == expected and copy.row(3).number == 4 and len(list(copy.rejected())) == 2
    again = stored([part_of([*PAIRS, *BROKEN])], unwatched).copy_to(folder / "run" / "data")
    assert contents(again) == expected


def test_the_images_of_rows_are_part_of_the_store_of_its_copy_and_of_its_weight(folder, write, monkeypatch):
    contents = [picture((5 + n, 5)) for n in range(3)]
    for number, content in enumerate(contents):
        (folder / f"{number}.png").write_bytes(content)
    rows = [{"prompt": "a", "completion": str(n), "image": f"{n}.png"} for n in range(3)]
    found = stored([part_of(write("a.jsonl", rows))], unwatched)
    assert found.has_images and not stored([part_of(PAIRS)], unwatched).has_images
    copy = found.copy_to(folder / "run")
    found.copy_to(folder / "run")
    shutil.rmtree(found.folder)
    assert [copy.image_path(row.images[0]["file"]).read_bytes() for row in copy.rows(range(3))] == contents
    assert copy.has_images and not list(copy.folder.rglob("*.part"))
    assert store._bytes_in(copy.folder) == sum(
        path.stat().st_size for path in [*copy.folder.glob("*.*"), *(copy.folder / "images").iterdir()]
    )
    (copy.folder / META).write_text(json.dumps({"key": "a", "files": [""], "rejected": 0}))
    assert not Store(copy.folder).has_images, "a folder of an earlier version"


def test_where_nothing_can_be_linked_it_is_copied(folder, monkeypatch):
    def refuse(*paths):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    found = stored([part_of(PAIRS)], unwatched)
    copy = found.copy_to(folder / "run")
    assert contents(copy) == contents(found)
    assert not list(copy.folder.glob(".*"))
