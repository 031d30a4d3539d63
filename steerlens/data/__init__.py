"""Contrasting prompts: what goes in. Knows no model."""

from steerlens.data.asking import Asking, few_shot, instruction, system_message
from steerlens.data.axbench import AxBench, read_axbench
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.data.lint import Finding, LintWarning
from steerlens.data.prompt_files import load_prompts, read_pairs, read_prompts
from steerlens.data.prompts import Message, Passage, Prompt, as_texts, require_prompt
from steerlens.data.questions import Question, load_questions, require_unseen

__all__ = [
    "Asking",
    "AxBench",
    "ContrastiveDataset",
    "Finding",
    "LintWarning",
    "Message",
    "Passage",
    "Prompt",
    "Question",
    "as_texts",
    "few_shot",
    "instruction",
    "load_prompts",
    "load_questions",
    "read_axbench",
    "read_pairs",
    "read_prompts",
    "require_prompt",
    "require_unseen",
    "system_message",
]
