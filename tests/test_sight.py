import pytest

from gemma_tune.sight import LARGE, image_numbers

SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "image_size": 896, "patch_size": 14}


def test_an_image_of_gemma_3_takes_what_was_measured_of_siglip():
    """A batch of four took 1,226 MB in float32 beside what was held before, one of one 356 MB."""
    counted = image_numbers({"model_type": "gemma3", "vision_config": SIGLIP})
    assert 4 * counted * 4 == pytest.approx(1_226e6, rel=0.05)
    assert counted == image_numbers({"model_type": "gemma3"})


def test_more_patches_and_a_wider_tower_take_more():
    small = image_numbers({"model_type": "gemma4"})
    assert image_numbers({"model_type": "gemma4"}, {"max_soft_tokens": 560}) == 2 * small
    assert image_numbers({"model_type": "gemma4", "vision_config": LARGE}) > 1.3 * small


def test_a_model_that_sees_nothing_takes_nothing():
    assert image_numbers({"model_type": "gemma3_text"}) == image_numbers({"model_type": "gemma3n"}) == 0
