"""The selection mixin for transformers' Trainer and TRL's SFTTrainer, and the trainers that carry it."""
