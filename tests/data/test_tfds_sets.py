"""TensorFlow Datasets: sets that the tests define and prepare themselves, read without TensorFlow."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gemma_tune.data.tfds_sets import is_prepared, open_prepared, open_tfds, tfds_choices
from gemma_tune.errors import DataError

ROOT = Path(__file__).parents[2]
TURNS = [{"role": "user", "content": "Wo?"}, {"role": "assistant", "content": "Hier."}]
ROWS = 600  # more than one batch


def example(number: int) -> dict:
    return {
        "prompt": b"\xff\xfe" if number == 7 else f"Frage {number}: Größe?",
        "completion": f"Antwort {number}",
        "label": number % 3 - 1,  # -1 is no label
        "messages": TURNS[: number % 3],
        "facts": {"score": number / 2, "tags": ["kurz", "gut"][: number % 3]},
        "grid": [[1, 2], [3, 4]],
        "photo": io.BytesIO(b"never decoded"),
    }


@pytest.fixture(scope="session")
def library():
    """TFDS with three sets that it then knows by name."""
    import numpy as np
    import tensorflow_datasets as tfds

    kinds = tfds.features
    answers = kinds.FeaturesDict(
        {
            "prompt": kinds.Text(),
            "completion": kinds.Text(),
            "label": kinds.ClassLabel(names=["bad", "good"]),
            "messages": kinds.Sequence({"role": kinds.Text(), "content": kinds.Text()}),
            "facts": {"score": np.float32, "tags": kinds.Sequence(kinds.Text())},
            "grid": kinds.Tensor(shape=(2, 2), dtype=np.int64),
            "photo": kinds.Image(),
        }
    )

    class TinyAnswers(tfds.core.GeneratorBasedBuilder):
        """Its rows keep their order."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=answers, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(ROWS), "test": self._generate_examples(5)}

        def _generate_examples(self, count):
            yield from ((number, example(number)) for number in range(count))

    class TinyTongues(tfds.core.GeneratorBasedBuilder):
        """Two configs."""

        VERSION = tfds.core.Version("2.1.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="de"), tfds.core.BuilderConfig(name="en")]

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=kinds.FeaturesDict({"text": kinds.Text()}))

        def _split_generators(self, dl_manager):
            return {"all_of_it": self._generate_examples()}

        def _generate_examples(self):
            yield 1, {"text": self.builder_config.name}

    class TinyNeedy(TinyTongues):
        """Its code needs a library that is not here."""

        def _generate_examples(self):
            import no_such_library  # noqa: F401

            yield 1, {"text": ""}

    class TinyOffline(TinyTongues):
        """Its files cannot be had."""

        def _split_generators(self, dl_manager):
            raise ConnectionError("no route to host")

    return tfds


@pytest.fixture(scope="session")
def prepared_once(library, tmp_path_factory) -> Path:
    builder = library.builder("tiny_answers", data_dir=tmp_path_factory.mktemp("tfds"))
    builder.download_and_prepare(
        file_format="array_record", download_config=library.download.DownloadConfig(num_shards=3)
    )
    return Path(builder.data_dir)


@pytest.fixture
def home(library, tmp_path, monkeypatch) -> Path:
    """TFDS's own folder, still empty."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def folder(prepared_once, home) -> Path:
    """The set in files that a test may spoil."""
    return shutil.copytree(prepared_once, home / "tiny_answers" / "1.0.0")


def rows_of(opened) -> dict[int, dict]:
    return {
        number: value
        for records in opened.records()
        for number, value in zip(records.numbers, records.values, strict=True)
    }


def rejected_of(opened) -> list:
    return [one for records in opened.records() for one in records.rejected]


def edit_info(folder: Path, change) -> None:
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def file_of(folder: Path, split: str) -> Path:
    """The first of its three."""
    return folder / f"tiny_answers-{split}.array_record-00000-of-00003"


def fault_of(call):
    with pytest.raises(DataError) as caught:
        call()
    return caught.value.faults[0]


def test_examples_become_plain_rows(folder):
    rows = rows_of(open_prepared(folder, "test"))
    assert list(rows) == [1, 2, 3, 4, 5]
    assert rows[3] == {
        "prompt": "Frage 2: Größe?",
        "completion": "Antwort 2",
        "label": "good",
        "messages": TURNS,
        "facts": {"score": 1.0, "tags": ["kurz", "gut"]},
        "grid": [[1, 2], [3, 4]],
    }
    assert json.loads(json.dumps(rows[3])) == rows[3]
    assert rows[1]["messages"] == [] and rows[1]["facts"]["tags"] == []
    assert [rows[number]["label"] for number in (1, 2, 3)] == [None, "bad", "good"]


def test_rows_come_in_their_order_and_the_bytes_read_add_up(folder):
    opened = open_prepared(folder, "train")
    rows = rows_of(opened)
    assert [row["completion"] for row in rows.values()] == [f"Antwort {n}" for n in range(ROWS) if n != 7]
    assert [records.first for records in opened.records()] == [1, 257, 513]
    assert sum(records.read_bytes for records in opened.records()) == opened.total_bytes > 0


def test_text_that_is_not_utf8_rejects_its_row_alone(folder):
    opened = open_prepared(folder, "train[:20]")
    (one,) = rejected_of(opened)
    assert (one.number, one.field, one.rule) == (8, "prompt", "The text is not UTF-8.")
    assert one.way_out
    assert list(rows_of(opened)) == [number for number in range(1, 21) if number != 8]


def test_columns_are_known_and_notes_say_what_becomes_of_labels_and_images(folder):
    opened = open_prepared(folder, "train")
    assert opened.columns == ["completion", "facts", "grid", "label", "messages", "prompt"]
    assert opened.notes == [
        "Left out, being images, audio or video: photo.",
        "Classes are read by their names, not their numbers: label.",
    ]


@pytest.mark.parametrize(
    ("split", "first", "count"),
    [
        ("train[:10%]", 0, 60),
        ("train[100:200]", 100, 100),
        ("train[-5:]", 595, 5),
        ("train[50%:51%]", 300, 6),
    ],
)
def test_a_slice_counts_its_rows_from_one(folder, split, first, count):
    rows = rows_of(open_prepared(folder, split))
    last = first + count - 1
    assert max(rows) == count
    assert rows[count]["completion"] == f"Antwort {last}"
    assert len(rows) == count - (first <= 7 <= last)


def test_splits_can_be_added(folder):
    rows = rows_of(open_prepared(folder, "test+train[10:12]"))
    assert [row["completion"][8:] for row in rows.values()] == ["0", "1", "2", "3", "4", "10", "11"]


@pytest.mark.parametrize("split", ["validation", "train[:9999]", "train[a]", "", "all[:3]", "train[7]"])
def test_an_unknown_split_or_slice_names_those_that_exist(folder, split):
    fault = fault_of(lambda: open_prepared(folder, split))
    assert (fault.where, fault.value) == ("data.split", split)
    assert "train (600 rows)" in fault.way_out and "test (5 rows)" in fault.way_out


@pytest.mark.parametrize("split", ["train[:0]", "train[20:10]"])
def test_a_slice_without_rows_is_refused(folder, split):
    assert "no row" in fault_of(lambda: open_prepared(folder, split)).rule


def test_the_fingerprint_is_that_of_the_data_not_of_the_place(folder, prepared_once):
    mark = open_prepared(folder, "train").fingerprint()
    assert mark == open_prepared(prepared_once, "train").fingerprint()
    assert mark == open_prepared(folder, "train[:100%]").fingerprint()
    assert mark != open_prepared(folder, "train[:599]").fingerprint()
    assert mark != open_prepared(folder, "test").fingerprint()


@pytest.mark.parametrize("place", [300, -300])
def test_the_fingerprint_changes_with_one_byte(folder, place):
    opened = open_prepared(folder, "test")
    mark = opened.fingerprint()
    data = bytearray(file_of(folder, "test").read_bytes())
    data[place] ^= 1
    file_of(folder, "test").write_bytes(data)
    assert opened.fingerprint() != mark


def test_the_fingerprint_changes_with_the_names_of_classes(folder):
    mark = open_prepared(folder, "test").fingerprint()
    labels = folder / "label.labels.txt"
    labels.write_text(labels.read_text().replace("good", "fine"))
    assert open_prepared(folder, "test").fingerprint() != mark


def test_a_folder_is_known_by_its_two_files_and_may_hold_one_version(folder, tmp_path):
    assert is_prepared(folder) and is_prepared(folder.parent)
    assert not is_prepared(tmp_path) and not is_prepared(tmp_path / "nothing")
    assert len(rows_of(open_prepared(folder.parent, "test"))) == 5
    shutil.copytree(folder, folder.parent / "1.0.1")
    assert is_prepared(folder) and not is_prepared(folder.parent)
    (folder / "features.json").unlink()
    assert not is_prepared(folder)
    assert str(folder) in fault_of(lambda: open_prepared(folder, "test")).where


def test_parquet_is_refused_because_it_lost_rows(library, tmp_path):
    builder = library.builder("tiny_answers", data_dir=tmp_path)
    builder.download_and_prepare(file_format="parquet")
    assert len(builder.as_data_source("train")) < ROWS  # the reason
    fault = fault_of(lambda: open_prepared(Path(builder.data_dir), "train"))
    assert fault.value == "parquet" and "loses rows" in fault.rule
    assert 'builder.download_and_prepare(file_format="array_record")' in fault.way_out


@pytest.mark.parametrize("written", ["tfrecord", "riegeli"])
def test_formats_that_need_tensorflow_are_refused(folder, written):
    edit_info(folder, lambda info: info.update(fileFormat=written))
    fault = fault_of(lambda: open_prepared(folder, "train"))
    assert fault.value == written and "need" in fault.rule or "TensorFlow" in fault.rule
    assert 'file_format="array_record"' in fault.way_out


def test_array_record_is_read_where_it_lies_beside_another_format(folder):
    edit_info(
        folder, lambda info: info.update(fileFormat="tfrecord", alternativeFileFormats=["array_record"])
    )
    assert len(rows_of(open_prepared(folder, "test"))) == 5


@pytest.mark.parametrize("more", [-1, 1])
def test_a_wrong_number_of_rows_is_refused_with_both_numbers(folder, more):
    def recount(info):
        lengths = info["splits"][0]["shardLengths"]
        assert lengths == ["200", "200", "200"]
        lengths[0] = str(200 + more)

    edit_info(folder, recount)
    fault = fault_of(lambda: open_prepared(folder, "train"))
    assert fault.rule == f"The file holds 200 rows, but dataset_info.json counts {200 + more}."
    assert fault.value == file_of(folder, "train").name


def test_a_missing_file_is_named(folder):
    file_of(folder, "train").unlink()
    fault = fault_of(lambda: open_prepared(folder, "train"))
    assert fault.value == file_of(folder, "train").name and "missing" in fault.rule
    assert len(rows_of(open_prepared(folder, "test"))) == 5


@pytest.mark.parametrize(
    "spoil", [lambda data: data[: len(data) // 2], lambda _: b"", lambda _: b"x" * 99_999]
)
def test_a_file_that_is_cut_or_something_else_is_damaged(folder, spoil):
    file = file_of(folder, "test")
    file.write_bytes(spoil(file.read_bytes()))
    fault = fault_of(lambda: open_prepared(folder, "test"))
    assert file.name in str(fault) and "Copy the whole folder again" in fault.way_out


def test_damage_within_a_file_ends_the_reading_with_an_error(folder):
    file = file_of(folder, "test")
    data = bytearray(file.read_bytes())
    data[300:340] = b"x" * 40
    file.write_bytes(data)
    fault = fault_of(lambda: rows_of(open_prepared(folder, "test")))
    assert fault.where == str(folder) and "damaged" in fault.rule


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_broken_metadata_is_an_error_of_the_data(folder, name):
    (folder / name).write_text("{")
    assert fault_of(lambda: open_prepared(folder, "test")).where == str(folder)


def test_a_set_cannot_point_at_files_outside_its_folder(folder):
    outside = shutil.copy(file_of(folder, "test"), folder.parent / "away")
    edit_info(folder, lambda info: info["splits"][1].update(filepathTemplate=f"../{outside.name}"))
    assert "missing" in fault_of(lambda: open_prepared(folder, "test")).rule


def test_a_set_cannot_have_code_imported(folder, monkeypatch):
    path = folder / "features.json"
    path.write_text(path.read_text().replace("tensorflow_datasets.core.features.text_feature", "this"))
    monkeypatch.delitem(sys.modules, "this", raising=False)
    fault = fault_of(lambda: open_prepared(folder, "test"))
    assert fault.value == "this.Text" and "this" not in sys.modules


def test_a_set_is_found_by_name_in_the_folder_of_tfds(folder):
    opened = open_tfds("tiny_answers", "test")
    assert opened.name == "tfds:tiny_answers"
    assert rows_of(opened) == rows_of(open_prepared(folder, "test"))
    assert opened.fingerprint() == open_prepared(folder, "test").fingerprint()
    assert rows_of(open_tfds("tiny_answers:1.0.0", "test")) == rows_of(opened)


def test_a_set_of_its_own_needs_no_code(folder):
    copied = shutil.copytree(folder, folder.parents[1] / "my_own" / "1.0.0")
    edit_info(copied, lambda info: info.update(name="my_own"))
    for file in copied.glob("tiny_answers-*"):
        file.rename(copied / file.name.replace("tiny_answers", "my_own"))
    assert len(rows_of(open_tfds("my_own", "test"))) == 5
    assert tfds_choices("my_own") == {"": ["train", "test"]}


def test_nothing_is_prepared_before_it_is_read(home):
    opened = open_tfds("tiny_tongues/en", "all_of_it")
    assert opened.columns == ["text"] and "downloaded" in opened.notes[0] and opened.total_bytes is None
    assert tfds_choices("tiny_tongues") == {"de": [], "en": []}
    assert not list(home.iterdir())
    assert rows_of(opened) == {1: {"text": "en"}}
    assert opened.fingerprint() == open_tfds("tiny_tongues/en:2.1.0", "all_of_it").fingerprint()
    assert tfds_choices("tfds:tiny_tongues") == {"de": [], "en": ["all_of_it"]}
    assert tfds_choices("tiny_tongues/en") == {"en": ["all_of_it"]}
    assert tfds_choices(home / "tiny_tongues" / "en") == {"en": ["all_of_it"]}


def test_what_tfds_prints_stays_out_of_stdout(home, capsys):
    rows_of(open_tfds("tiny_tongues/de", "all_of_it"))
    assert capsys.readouterr().out == ""


def test_the_default_config_is_named(home):
    assert open_tfds("tiny_tongues", "all_of_it").notes[0] == "Config de, the default."


def test_an_unknown_split_shows_when_an_unprepared_set_is_read(home):
    opened = open_tfds("tiny_tongues", "train")
    assert "all_of_it (1 rows)" in fault_of(opened.records).way_out


@pytest.mark.parametrize(
    ("name", "rule", "way_out"),
    [
        ("gsm9k", "TFDS has no set of this name.", "Did you mean gsm8k?"),
        ("tiny_answer", "TFDS has no set of this name.", "tiny_answers"),
        ("qqqqqqqqq", "TFDS has no set of this name.", "https://www.tensorflow.org/datasets/catalog"),
        ("tiny_tongues/fr", "tiny_tongues has no such config.", "de, en"),
        ("tiny_answers/fr", "tiny_answers has no such config.", "tfds:tiny_answers"),
        ("tiny_tongues/de:9.0.0", "2.1.0", "Leave the version out"),
        ("huggingface:tiny", "A set of TFDS is written", "for instance"),
        ("../tiny_answers", "A set of TFDS is written", "for instance"),
        ("tiny_tongues/..", "A set of TFDS is written", "for instance"),
        ("tiny_tongues/file_format=parquet", "A set of TFDS is written", "for instance"),
        ("", "A set of TFDS is written", "for instance"),
    ],
)
def test_a_name_that_tfds_does_not_know_is_refused_with_near_ones(home, name, rule, way_out):
    fault = fault_of(lambda: open_tfds(name, "train"))
    assert fault.value == f"tfds:{name}" and rule in fault.rule and way_out in fault.way_out


def test_choices_of_an_unknown_name_or_config_are_refused_likewise(home):
    assert "gsm8k" in fault_of(lambda: tfds_choices("gsm9k")).way_out
    assert "de" in fault_of(lambda: tfds_choices("tiny_tongues/fr")).way_out


def test_sets_of_language_are_known_although_libraries_of_others_are_missing(home):
    assert open_tfds("gsm8k", "train").columns == ["annotation", "answer", "question", "short_answer"]
    assert "cola" in tfds_choices("glue")


def test_a_set_whose_code_needs_a_library_names_it(home):
    fault = fault_of(open_tfds("tiny_needy", "all_of_it").fingerprint)
    assert "no_such_library" in fault.rule and "--file_format=array_record" in fault.way_out


def test_a_download_that_fails_says_why(home):
    fault = fault_of(open_tfds("tiny_offline", "all_of_it").records)
    assert fault.value == "no route to host" and "network" in fault.way_out
    assert not list(home.glob("tiny_offline/*/2.1.0"))


@pytest.mark.parametrize("library_name", ["tensorflow_datasets", "array_record.python"])
def test_without_the_library_the_way_out_is_its_installation(folder, monkeypatch, library_name):
    monkeypatch.setitem(sys.modules, library_name, None)
    for call in (
        lambda: open_tfds("gsm8k", "train"),
        lambda: open_prepared(folder, "test"),
        lambda: tfds_choices("gsm8k"),
        lambda: tfds_choices(folder),
    ):
        assert fault_of(call).way_out == 'pip install "gemma-tune[tfds]"'
    assert is_prepared(folder)


def test_tensorflow_is_never_imported(folder, tmp_path):
    """A trap stands in its place, so that an attempt shows where it is not installed."""
    trap = tmp_path / "trap" / "tensorflow"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("raise SystemExit('tensorflow was imported')")
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; import gemma_tune.data.tfds_sets as sets\n"
        "print('tensorflow_datasets' in sys.modules)\n"
        "opened = sets.open_prepared(Path(sys.argv[1]), 'train[:5]')\n"
        "print(sum(len(one.values) for one in opened.records()), len(opened.fingerprint()))\n"
        "sets.tfds_choices('gsm8k'); print('tensorflow' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(trap.parent)],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert shown.stdout.split() == ["False", "5", "64", "False"], shown.stdout + shown.stderr
