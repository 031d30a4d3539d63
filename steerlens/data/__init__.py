"""Contrasting prompts: what goes in. Knows no model."""

from steerlens.data.contrastive import ContrastiveDataset
from steerlens.data.prompts import Message, Passage, Prompt, load_prompts, require_prompt

__all__ = ["ContrastiveDataset", "Message", "Passage", "Prompt", "load_prompts", "require_prompt"]
