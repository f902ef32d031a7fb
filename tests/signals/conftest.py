import pytest
from peft import PeftModel

from longgame.data.examples import Pool
from support.signals import llama, random_pool, with_lora


@pytest.fixture(scope="session")
def pool() -> Pool:
    return random_pool()


@pytest.fixture(scope="session")
def adapted() -> PeftModel:
    """A LoRA adapter with B ≠ 0; tests leave it as it is."""
    return with_lora(llama())
