import pytest

from longgame.recipe import Recipe, parse_recipe


@pytest.fixture
def recipe() -> Recipe:
    return parse_recipe(
        {
            "name": "small",
            "model": {"name": "quadratic"},
            "data": {
                "sequence": "quadratic",
                "stages": [{"name": "a"}, {"name": "b"}, {"name": "c"}],
                "ood": [{"name": "a-rotated"}, {"name": "b-shifted"}],
                "pool_size": 120,
                "unseen": 0.25,
                "noise": 0.1,
                "duplicates": 0.1,
            },
            "selectors": ["random"],
            "training": {"steps": 8, "learning_rate": 0.1, "warmup_steps": 2},
            "probe": {"steps": 4, "points": 3},
        }
    )
