"""What is timed: a random Llama under three hosts, and texts from the demo data."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import steerlens as sl
from steerlens.data.prompts import Passage
from steerlens.models.tokenizing import left_padded, pad_token, tokenize
from steerlens.models.weight_layout import stock_layout


@dataclass(frozen=True)
class Size:
    """Of the model and of the jobs."""

    layers: int = 8
    width: int = 512
    heads: int = 8
    mlp: int = 1376
    vocab: int = 8000
    context: int = 1024
    batches: tuple[int, ...] = (1, 8, 32)
    decoded: int = 32
    pairs: int = 300
    questions: int = 40
    suffixes: int = 40
    replies: int = 64
    reply_tokens: int = 30
    learned_steps: int = 60
    swept_layers: int = 6
    strengths: int = 7
    swept_prompts: int = 8
    swept_tokens: int = 20
    grid_step: float = 1e-4
    """Between the thresholds that CAST tries."""
    planted: tuple[int, int, int] = (2000, 4, 4096)
    """Pairs, layers and width of the activations with a planted direction."""


FULL = Size()
QUICK = Size(
    layers=4, width=64, heads=4, mlp=128, vocab=3072, context=512, batches=(1, 4), decoded=4,
    pairs=12, questions=6, suffixes=6, replies=6, reply_tokens=4, learned_steps=3, swept_layers=2,
    strengths=2, swept_prompts=3, swept_tokens=4, grid_step=3e-3, planted=(150, 2, 256),
)  # fmt: skip


def make_llama(folder: Path, size: Size) -> Path:
    """A random Llama with tiny-chat's tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(sl.demo_file("tiny-chat"))
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=size.context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Hosts:
    """One folder, loaded three ways; none of them stops at an end of text."""

    name: str
    folder: Path
    device: str = "cpu"

    @cached_property
    def ours(self) -> Any:
        model = sl.load_model(str(self.folder), device=self.device)
        model.tokenizer.eos_token = None
        return model

    @cached_property
    def stock(self) -> Any:
        return stock_layout(sl.load_model(str(self.folder), device=self.device))

    @cached_property
    def hf(self) -> Any:
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        model.generation_config.eos_token_id = None
        return model.to(self.device)

    @cached_property
    def tokenizer(self) -> Any:
        """For the peers: pads right, where causal attention needs no mask."""
        return AutoTokenizer.from_pretrained(self.folder, padding_side="right")

    def rows(self, prompts: Sequence[Any]) -> list[list[int]]:
        return [list(row.ids) for row in tokenize(self.ours, prompts)]

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Padded left, and the mask."""
        return left_padded(rows, pad_token(self.ours), self.device)

    def text(self, passage: Passage) -> str:
        """As the peers take it, who add a BOS: the template applied, the suffix appended."""
        chat = [{"role": "user", "content": passage.prompt}]
        rendered = self.tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
        return rendered.removeprefix(self.tokenizer.bos_token) + passage.suffix


def plain_pairs() -> list[tuple[str, str]]:
    """The demo data's harmful and harmless prompts, each once."""
    data = sl.ContrastiveDataset.load(sl.demo_file("harmful.json"))
    sides = [dict.fromkeys(side) for side in zip(*data.pairs, strict=True)]
    return list(zip(*sides, strict=False))


def mixed_pairs(n: int) -> list[tuple[str, str]]:
    """Harmful and harmless texts of one to several demo prompts each; all are different."""
    sides = list(zip(*plain_pairs(), strict=True))
    laps = -(-n // len(sides[0]))
    generator = random.Random(0)

    def text(side: Sequence[str], start: int, lap: int) -> str:
        """Each lap takes its prompts from further apart."""
        count = generator.choice((1, 1, 1, 2, 2, 3, 4, 6)) + (lap > 0)
        return " ".join(side[(start + step * (1 + lap)) % len(side)] for step in range(count))

    starts = product(range(laps), range(len(sides[0])))
    return [tuple(text(side, start, lap) for side in sides) for lap, start in islice(starts, n)]


def suffix_data(questions: int, suffixes: int) -> sl.ContrastiveDataset:
    """Questions of the demo data, each with beginnings of refusing and of complying replies."""
    data = sl.ContrastiveDataset.load(sl.demo_file("refusal.json"))
    distinct = list(dict.fromkeys(chain.from_iterable(data.pairs)))[:questions]
    return sl.ContrastiveDataset([(q, q) for q in distinct], data.suffixes[:suffixes])
