from dataclasses import replace

import numpy as np

from gemma_tune.data.findings import Example, Finding
from gemma_tune.data.formats import FORMATS
from gemma_tune.data.rendering import Piece
from gemma_tune.data.rows import Rejected
from gemma_tune.hub_access import Check
from gemma_tune.ui import data_views
from gemma_tune.ui.data_step import FIELDS

EVIL = "<img src=x onerror=alert(1)>`${alert(1)}`"
REFUSED = Rejected(1, EVIL, EVIL, EVIL, EVIL, EVIL, fixes=("merge_turns",), before=EVIL, after=EVIL)


def test_text_from_data_is_inert():
    pages = [
        data_views.rendered([Piece(EVIL, "prompt", [(1, EVIL)])], 1, EVIL),
        data_views.rendered([Piece(EVIL, "prompt", [(1, EVIL)])], 1, ids=True),
        data_views.findings([Finding(EVIL, 1, EVIL, "warm", [Example(1, EVIL, EVIL)])]),
        data_views.fixes([REFUSED]),
        data_views.mix([{"source": EVIL, "columns": {"prompt": EVIL}, "format": EVIL, "weight": 1}]),
        data_views.progress(EVIL, 1, 2),
        data_views.access([Check("token", "no", EVIL, EVIL)]),
    ]
    for page in pages:
        assert "<img" not in page and "onerror" in page.replace("&lt;img", "") or "&lt;img" in page


def test_control_tokens_and_learned_tokens_are_marked():
    pieces = [Piece("<bos><start_of_turn>user\nHi", "prompt"), Piece("Yes.<end_of_turn>", "learned")]
    page = data_views.rendered(pieces, 3)
    assert '<span class="gt-control">&lt;start_of_turn&gt;</span>' in page
    assert '<span class="gt-learned">Yes.<span class="gt-control">&lt;end_of_turn&gt;' in page
    gemma4 = data_views.rendered([Piece("<|turn>model\nHi<turn|>", "learned")], 1)
    assert gemma4.count('class="gt-control">&lt;') == 3  # both, and the one in the legend


def test_ids_stand_over_their_tokens_and_counts_tell_what_is_cut():
    pieces = [Piece("Hi\n", "prompt", [(7, "Hi"), (8, "\n")]), Piece("no", "cut", [(9, "no")])]
    page = data_views.rendered(pieces, 3, ids=True)
    assert "<ruby>Hi<rt>7</rt></ruby>" in page and "⏎<rt>8</rt></ruby><br>" in page
    assert "3 tokens, 0 learned, 1 cut" in page


def test_an_image_is_shown_in_its_place_with_what_it_costs():
    marks = [(5, "<b>"), (6, "(soft)"), (7, "</b>")]
    pieces = [
        Piece("before", "prompt", [(1, "before")]),
        Piece("<b><soft></b>", "image", marks, image_tokens=256),
        Piece("<b><soft></b>", "image", marks, image_tokens=1_256, cut=True),
    ]
    page = data_views.rendered(pieces, 1, pictures=["data:image/jpeg;base64,AAAA"])
    assert page.count("<img") == 1 and 'src="data:image/jpeg;base64,AAAA"' in page
    assert page.index("before") < page.index("<img") < page.index("image · 256 tokens")
    assert "image · 1,256 tokens · beyond the maximum length" in page
    assert "1,517 tokens, 0 learned" in page and "(soft)" not in page
    ids = data_views.rendered(pieces, 1, ids=True)
    assert "<ruby>(soft)<rt>6</rt></ruby>" in ids and "<img" not in ids
    assert "<img src=x" not in data_views.rendered(pieces, 1, pictures=['x"><img src=x onerror=alert(1)>'])


def test_the_histogram_counts_every_row_and_draws_the_maximum_length_in():
    page = data_views.lengths(np.array([10, 20, 500]), 256)
    assert page.count("gt-over") >= 1 and "longest 500" in page and "maximum 256" in page
    assert "1 of 3 rows are longer than 256" in page
    assert "every row fits into 1,024" in data_views.lengths([10, 20], 1024)
    assert "gt-limit" not in data_views.lengths([10, 20], 1024)  # far beyond what is drawn
    assert "No rows yet" in data_views.lengths([], 256)


def test_one_giant_row_does_not_flatten_the_histogram():
    page = data_views.lengths([20] * 99 + [50_000], 1024)
    assert "or more tokens: 1 rows" in page and "longest 50,000" in page
    assert page.count("<i ") <= data_views.HISTOGRAM_BARS + 1


def test_the_three_questions_of_access_are_marked_and_one_reason_stands_once():
    checks = [
        Check("token", "yes", "A token is entered."),
        Check("valid", "no", "Not known.", "https://huggingface.co/settings/tokens"),
        Check("licence", "unknown", "Not asked."),
    ]
    page = data_views.access(checks)
    assert page.count("<li") == 3 and "✓" in page and "✗" in page
    assert 'href="https://huggingface.co/settings/tokens"' in page
    assert data_views.access([replace(one, words="offline") for one in checks]).count("<li") == 1
    assert data_views.access([]) == ""


def test_the_fields_that_can_be_mapped_are_those_of_the_schemas():
    assert set(FIELDS) == {name for form in FORMATS.values() for name in (*form.needs, *form.may)}


def test_fixes_are_shown_only_where_they_help():
    assert data_views.fixes([replace(REFUSED, fixes=())]) == ""
    page = data_views.fixes([replace(REFUSED, before="two turns", after="one turn", file="a.json")])
    assert "neighbouring turns of one role merged" in page and "Row 1 of a.json" in page


def test_a_mix_names_its_parts_with_their_buttons():
    page = data_views.mix([{"source": "hub:me/set", "subset": "en", "split": "train", "format": "auto", "columns": {}, "weight": 2.0}])  # fmt: skip
    assert "me/set" in page and "weight 2" in page and "en train" in page
    assert 'data-action="edit" data-index="0"' in page and 'data-action="remove"' in page
    assert data_views.mix([]) == ""


def test_what_is_learned_of_pairs_and_labels_follows_the_objective():
    words = [
        data_views.LEARNED_OF[key] for key in (("preference", "sft"), ("preference", "dpo"), ("kto", "kto"))
    ]
    assert (
        "left alone" in words[0] and "likelier than the rejected" in words[1] and "bad ones less" in words[2]
    )
    assert "not learned" in data_views.rendered([Piece("no", "learned")], 1, label=False, left_alone=True)
    assert "not learned" not in data_views.rendered([Piece("no", "learned")], 1, label=False)
