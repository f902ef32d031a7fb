"""The private members that longgame relies on exist, with these parameters, and no others are used."""

import ast
import dataclasses
import inspect
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from transformers import Trainer
from trl import SFTTrainer

import longgame.training.sft
import longgame.training.stage
import longgame.training.trainer
from longgame.models.head import without_autocast
from longgame.training.compat import SFT_ATTRIBUTES, SFT_METHODS, TRAINER_ATTRIBUTES, TRAINER_METHODS
from support.training import make_model

MODULES = (longgame.training.trainer, longgame.training.stage, longgame.training.sft)


@pytest.mark.parametrize("name", TRAINER_METHODS)
def test_trainer_method_has_the_parameters_relied_on(name):
    assert set(TRAINER_METHODS[name]) <= set(inspect.signature(getattr(Trainer, name)).parameters)


@pytest.mark.parametrize("name", SFT_METHODS)
def test_sft_method_has_the_parameters_relied_on(name):
    assert list(SFT_METHODS[name]) == list(inspect.signature(getattr(SFTTrainer, name)).parameters)[1:]


@pytest.mark.parametrize(
    ("cls", "name"),
    [*((Trainer, name) for name in TRAINER_ATTRIBUTES), *((SFTTrainer, name) for name in SFT_ATTRIBUTES)],
)
def test_private_attribute_is_set_by_its_class(cls, name):
    assert f"self.{name} = " in inspect.getsource(cls)


def test_accelerate_members_exist_where_they_are_replaced():
    assert "dispatch_batches" in {item.name for item in dataclasses.fields(DataLoaderConfiguration)}
    assert inspect.signature(Accelerator.free_memory).parameters["objects"].kind is inspect.Parameter.VAR_POSITIONAL
    assert "self.accelerator.free_memory()" in inspect.getsource(Trainer._inner_training_loop)


def test_mixed_precision_wraps_forward_of_the_model_itself():
    """`longgame.models.head.without_autocast` takes the wrapper off."""
    AcceleratorState._reset_state(True)
    model = make_model(lora=False)
    before = model.forward
    for _ in range(2):
        assert Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model) is model
    AcceleratorState._reset_state(True)
    wrapped = model.forward
    with without_autocast(model):
        assert model.forward == before
    assert model.forward == wrapped != before


def test_selection_state_is_restored_before_the_first_batch():
    source = inspect.getsource(Trainer._inner_training_loop)
    assert source.index("self._init_training_state(") < source.index("self._prepare_for_training(")
    assert source.index("self.get_train_dataloader()") < source.index("self._prepare_for_training(")
    assert "self._load_optimizer_and_scheduler(" in inspect.getsource(Trainer._prepare_for_training)


def test_no_other_private_member_is_used():
    trees = [ast.parse(Path(module.__file__).read_text()) for module in MODULES]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    defined |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and node.attr.startswith("_")}
    inherited = {name for name in used | defined if name in vars(Trainer) | vars(SFTTrainer)} | (used - defined)
    private = {name for name in inherited if name.startswith("_") and not name.startswith("__")}
    assert private <= {*TRAINER_METHODS, *TRAINER_ATTRIBUTES, *SFT_METHODS, *SFT_ATTRIBUTES}
