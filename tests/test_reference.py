from pathlib import Path

from gemma_tune.reference import page

ROOT = Path(__file__).parent.parent


def test_the_page_of_settings_is_what_the_configuration_says():
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == page()
