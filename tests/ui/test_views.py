from gemma_tune import catalog
from gemma_tune.errors import Fault
from gemma_tune.ui import views

EVIL = "<img src=x onerror=alert(1)>`${alert(1)}`"


def test_text_from_data_models_and_faults_is_inert():
    pages = [
        views.rendered([(EVIL, "prompt"), (EVIL, "learned")], 1),
        views.fault_list([Fault(EVIL, EVIL, EVIL, EVIL)]),
        views.notice("bad", EVIL, EVIL),
        views.facts([(EVIL, EVIL)]),
        views.figure(EVIL, EVIL, EVIL),
    ]
    for page in pages:
        assert "<img" not in page


def test_control_tokens_and_learned_tokens_are_marked():
    page = views.rendered([("<bos><start_of_turn>user\nHi", "prompt"), ("Yes.<end_of_turn>", "learned")], 3)
    assert '<span class="gt-control">&lt;start_of_turn&gt;</span>' in page
    assert '<span class="gt-learned">Yes.<span class="gt-control">&lt;end_of_turn&gt;' in page


def test_numbers_read_as_people_say_them():
    assert [views.count(n) for n in (None, 999, 3.2e6, 27e9)] == ["unknown", "999", "3.2 M", "27 B"]
    assert [views.size(n) for n in (None, 6_500_000, 54.84e9)] == ["unknown", "6.5 MB", "54.8 GB"]


def test_a_gated_model_shows_its_page_as_a_link_and_a_local_one_no_gate():
    gated = views.model_facts("google/gemma-3-1b-it", on_disk=False)
    assert 'href="https://huggingface.co/google/gemma-3-1b-it"' in gated and "2 GB" in gated
    assert "none, it is on this disk" in views.model_facts(catalog.POCKET_ID, on_disk=True)


def test_a_link_is_made_only_of_the_hub_and_googles_terms():
    assert "<a " not in views.fault_list([Fault("x", "", "r", "See https://evil.example/x.")])


def test_the_histogram_counts_every_row_and_marks_what_is_cut():
    page = views.lengths([10, 20, 500], 256)
    assert page.count("gt-over") >= 1 and "500 tokens" in page
    assert "No rows yet" in views.lengths([], 256)


def test_a_source_is_named_without_our_fingerprint():
    assert views.source_label("/home/x/uploads/0123456789ab-rows.csv") == "rows.csv"
    assert views.source_label("hub:owner/name") == "owner/name"
