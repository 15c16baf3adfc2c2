from types import SimpleNamespace

from gemma_tune.config import parse
from gemma_tune.errors import Fault
from gemma_tune.ui import views

EVIL = "<img src=x onerror=alert(1)>`${alert(1)}`"


def test_text_from_data_models_and_faults_is_inert():
    pages = [
        views.fault_list([Fault(EVIL, EVIL, EVIL, EVIL)]),
        views.notice("bad", EVIL, EVIL),
        views.facts([(EVIL, EVIL)]),
        views.figure(EVIL, EVIL, EVIL),
    ]
    for page in pages:
        assert "<img" not in page


def test_numbers_read_as_people_say_them():
    assert [views.count(n) for n in (None, 999, 3.2e6, 27e9)] == ["unknown", "999", "3.2 M", "27 B"]
    assert [views.count(n) for n in (999_885_952, 999_499_999)] == ["1 B", "999 M"]
    assert [views.size(n) for n in (None, 6_500_000, 54.84e9)] == ["unknown", "6.5 MB", "54.8 GB"]


def test_a_link_is_made_only_of_the_hub_and_googles_terms():
    assert "<a " not in views.fault_list([Fault("x", "", "r", "See https://evil.example/x.")])


def test_a_source_is_named_without_our_fingerprint():
    assert views.source_label("/home/x/uploads/0123456789ab-rows.csv") == "rows.csv"
    assert views.source_label("hub:owner/name") == "owner/name"


def test_the_review_names_objective_method_and_effective_batch():
    config = parse(
        {"method": {"type": "qlora", "r": 8}, "objective": {"type": "dpo"}, "devices": {"num_processes": 2}}
    )
    report = SimpleNamespace(train_rows=90, validation_rows=10, total_steps=12, steps_per_epoch=4)
    page = views.review(config, report)
    assert (
        "QLoRA, rank 8" in page and "Preferences (DPO), learning rate 2e-4" in page and "16 rows each" in page
    )
