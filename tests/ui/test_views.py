from gemma_tune import catalog
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


def test_a_gated_model_shows_its_page_as_a_link_and_a_local_one_no_gate():
    gated = views.model_facts("google/gemma-3-1b-it", on_disk=False)
    assert 'href="https://huggingface.co/google/gemma-3-1b-it"' in gated and "2 GB" in gated
    assert "none, it is on this disk" in views.model_facts(catalog.POCKET_ID, on_disk=True)


def test_a_link_is_made_only_of_the_hub_and_googles_terms():
    assert "<a " not in views.fault_list([Fault("x", "", "r", "See https://evil.example/x.")])


def test_a_source_is_named_without_our_fingerprint():
    assert views.source_label("/home/x/uploads/0123456789ab-rows.csv") == "rows.csv"
    assert views.source_label("hub:owner/name") == "owner/name"
