import pytest

from gemma_tune.runs.reader import LOG_LINES_KEPT, LogReader


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.txt"


def append(path, text):
    with path.open("ab") as file:
        file.write(text.encode())


def test_only_new_lines_are_read_and_an_unfinished_one_waits(log):
    reader = LogReader(log)
    assert not reader.read()
    append(log, "one\ntw")
    assert reader.read()
    assert reader.lines(0, 10) == (0, 1, [("one", "")])
    append(log, "o\n")
    reader.read()
    assert reader.lines(1, 10) == (1, 2, [("two", "")])
    assert reader.lines(2, 10) == (2, 2, [])


def test_a_progress_bar_shows_its_last_state(log):
    reader = LogReader(log)
    append(log, "10%\r50%\r100%\r\n")
    reader.read()
    assert reader.lines(0, 1)[2] == [("100%", "")]


def test_lines_that_tell_of_an_error_are_marked(log):
    errors = [
        "Traceback (most recent call last):",
        "ValueError: no",
        "torch.OutOfMemoryError: CUDA out of memory.",
        "  requests.exceptions.HTTPError: 403",
        "2026-01-01 ERROR something",
    ]
    plain = ["step 1", "0 errors", "evaluation error rate 0.1", "TypeErrors are fine", "{'loss': 1.0}"]
    append(log, "\n".join(errors + plain) + "\n")
    reader = LogReader(log)
    reader.read()
    lines = reader.lines(None, 100)[2]
    assert [text for text, level in lines if level == "error"] == errors


def test_old_lines_are_dropped_and_a_cursor_to_them_gives_the_last_ones(log):
    reader = LogReader(log)
    append(log, "x\n" * (LOG_LINES_KEPT + 50))
    reader.read()
    first, after, lines = reader.lines(10, 5)
    assert (first, after, len(lines)) == (LOG_LINES_KEPT + 45, LOG_LINES_KEPT + 50, 5)


def test_a_rotated_log_is_read_from_its_beginning(log):
    reader = LogReader(log)
    append(log, "one\ntwo\n")
    reader.read()
    log.write_text("new\n")
    reader.read()
    assert reader.lines(2, 5)[2] == [("new", "")]


def test_bytes_that_are_no_text_and_endless_lines_do_no_harm(log):
    log.write_bytes(b"\xff\xfe\n" + b"y" * 5_000_000 + b"\nend\n")
    reader = LogReader(log)
    while reader.read():
        pass
    assert reader.lines(None, 1)[2] == [("end", "")]
