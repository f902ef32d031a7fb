"""Models: loading, adaptation, LoRA's layers, the output head, FLOPs."""
