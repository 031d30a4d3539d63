"""Train tiny-chat from scratch on the text of `corpus.py`, and write it to demo-data/tiny-chat.

    python demo-data/make/build.py
    python demo-data/make/train.py

Everything is seeded; every step sees fresh documents.  The weights are stored as float16, and the
last line of train.log is the validation loss of what was stored.
"""

import argparse
import copy
import json
import math
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import torch
from build import OUT
from corpus import Corpus, Document
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 256
VOCABULARY = 3072
TOKENS_PER_STEP = 2500


def make_tokenizer(texts) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    begun = [("<s>", tokenizer.token_to_id("<s>"))]  # as every text of the corpus is
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=begun
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        add_bos_token=True,
        eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


class Batches:
    """Documents as padded batches of about as many tokens each, of like lengths."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast):
        self.corpus = corpus
        self.encode = lru_cache(200_000)(tokenizer.backend_tokenizer.encode)

    def row(self, document: Document) -> tuple[list[int], list[float]]:
        ids, weights = [], []
        for text, weight in document:
            piece = self.encode(text).ids
            ids += piece
            weights += [weight] * len(piece)
        return ids[:CONTEXT], weights[:CONTEXT]

    def pool(self, documents: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        rows = [self.row(self.corpus.document()) for _ in range(documents)]
        rows.sort(key=lambda row: len(row[0]))
        batches, start = [], 0
        for stop in range(1, len(rows) + 1):
            full = stop < len(rows) and len(rows[stop][0]) * (stop + 1 - start) > TOKENS_PER_STEP
            if full or stop == len(rows):
                batches.append(self.padded(rows[start:stop]))
                start = stop
        self.corpus.random.shuffle(batches)
        return batches

    def padded(self, rows: list) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(ids) for ids, _ in rows)
        tokens = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
        weights = torch.tensor([values + [0.0] * (width - len(values)) for _, values in rows])
        return tokens, weights

    def __iter__(self):
        while True:
            yield from self.pool(2000)


def loss_of(model: LlamaForCausalLM, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted next-token loss.  Padding stands to the right, so causal attention never sees it."""
    hidden = model.model(tokens).last_hidden_state[:, :-1]
    weights, targets = weights[:, 1:], tokens[:, 1:]
    scored = weights > 0
    losses = torch.nn.functional.cross_entropy(
        model.lm_head(hidden[scored]), targets[scored], reduction="none"
    )
    return (losses * weights[scored]).sum() / weights.sum()


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, batches: list) -> float:
    model.eval()
    losses = [loss_of(model, *batch).item() for batch in batches]
    model.train()
    return sum(losses) / len(losses)


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def rate_at(step: int, steps: int) -> float:
    """Share of the peak rate: a short rise, then half a cosine to nothing."""
    rise = min(200, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


def save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, log: list[dict], out: Path
) -> None:
    """Write beside the old model first, then move file by file."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        model.to(torch.float16).save_pretrained(folder)
        model.config.dtype = torch.float32  # stored small, loaded for computing
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder, save_jinja_files=False)
        text = "".join(json.dumps(line) + "\n" for line in log)
        (Path(folder) / "train.log").write_text(text, encoding="utf-8")
        for file in Path(folder).iterdir():
            file.chmod(0o644)
            file.replace(out / file.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--rate", type=float, default=8e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT / "tiny-chat")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    corpus = Corpus(arguments.seed)
    sample = (text for _ in range(30_000) for text, _ in corpus.document())
    tokenizer = make_tokenizer(text for text in sample if text not in SPECIAL)
    model = make_model(tokenizer)
    optimizers = make_optimizers(model)
    checks = Batches(Corpus(arguments.seed + 1, "validation"), tokenizer).pool(400)
    stream = iter(Batches(corpus, tokenizer))

    log, losses, start = [], [], time.perf_counter()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")

    def note(step: int, **extra) -> None:
        line = {"step": step, "loss": round(sum(losses) / len(losses), 4), **extra}
        log.append(line | {"seconds": round(time.perf_counter() - start)})
        print(json.dumps(log[-1]), flush=True)

    for step in range(arguments.steps):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = arguments.rate * rate_at(step, arguments.steps)
        loss = loss_of(model, *next(stream))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        losses = [*losses[-99:], loss.item()]
        if (step + 1) % 250 == 0 or step + 1 == arguments.steps:
            note(step + 1, validation_loss=round(validation_loss(model, checks), 4))
        if (step + 1) % 800 == 0:
            save(copy.deepcopy(model), tokenizer, log, arguments.out)

    model.to(torch.float16).to(torch.float32)
    note(
        arguments.steps, validation_loss=round(validation_loss(model, checks), 4), weights="float16"
    )
    save(model, tokenizer, log, arguments.out)


if __name__ == "__main__":
    main()
