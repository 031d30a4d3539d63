"""How likely the model finds replies under a vector that is being learned, with its gradient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import kl_div
from torch.nn.utils.rnn import pad_sequence

from steerlens.activations.reading import every_token
from steerlens.learning.replies import ReplyText, steered_places
from steerlens.learning.streams import Start, Streams
from steerlens.models.fast_forward import forward_pass
from steerlens.models.hooking import NamedHook, placed
from steerlens.models.host import Cache, Model, all_logits, new_cache, unembedded
from steerlens.models.tokenizing import pad_token, right_padded
from steerlens.steering.clocks import DecodingClock
from steerlens.steering.steering import RowSettings, Run, Steering

Result = TypeVar("Result")
RowStrength = float | Float[Tensor, " text"]
"""One strength, or one for each text: then with its gradient."""


@dataclass(frozen=True, eq=False)
class LearnedSteering(Steering):
    """A plan whose directions are still being learned, so that gradients reach them."""

    live: Float[Tensor, "layer d_model"] = field(default_factory=lambda: torch.empty(0, 0))

    def direction(self, layer: int) -> Float[Tensor, " d_model"]:
        """As it is now."""
        return self.live[self.vector.row(layer)]


class TokenLogs(NamedTuple):
    """ln p of each token of each text's reply."""

    values: Float[Tensor, "text token"]
    real: Bool[Tensor, "text token"]
    """Which of them are tokens; the rest is padding, at 0."""

    @property
    def sums(self) -> Float[Tensor, " text"]:
        """ln p of each whole reply."""
        return self.values.sum(dim=1)

    @property
    def means(self) -> Float[Tensor, " text"]:
        """ln p per token of each reply."""
        return self.values.sum(dim=1) / self.real.sum(dim=1)


class TokenStream(NamedTuple):
    """The stream of each text's tokens."""

    values: Float[Tensor, "text token d_model"]
    real: Bool[Tensor, "text token"]
    """Which of them are tokens other than the first, which is an attention sink."""


class Read(NamedTuple):
    """What a pass over some texts gave after every token that predicts one after the prompt."""

    texts: tuple[ReplyText, ...]
    picked: tuple[Float[Tensor, "predicted width"], ...]


@dataclass(eq=False)
class Passes:
    """Reads texts under a plan, from the first block that the plan reaches if the host can."""

    model: Model
    plan: Steering
    streams: Streams | None
    """None: the whole model is run."""
    _unsteered: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    _read: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def read(
        self,
        texts: Sequence[ReplyText],
        directions: Float[Tensor, "layer d_model"],
        strength: RowStrength = 1.0,
        edit: Callable[..., Any] | None = None,
    ) -> Read:
        """Run texts with the directions added so many times, or edited otherwise."""
        rows, places = _predicting(texts)
        picked = self._picked(texts, rows, places, directions, strength, edit)
        return Read(tuple(texts), tuple(picked.split([_n_predicted(text) for text in texts])))

    def unsteered(self, texts: Sequence[ReplyText]) -> Read:
        """The same without the vector; each text is run once, then remembered."""
        new = [text for text in dict.fromkeys(texts) if text.ids not in self._unsteered]
        if new:
            with torch.no_grad():
                found = self.read(new, torch.zeros_like(self.plan.vector.directions), 0.0)
            self._unsteered |= {
                text.ids: picked.clone() for text, picked in zip(new, found.picked, strict=True)
            }
        return Read(tuple(texts), tuple(self._unsteered[text.ids] for text in texts))

    def reply_logs(self, read: Read) -> TokenLogs:
        """ln p of the replies' tokens, in float32."""
        counts = [text.end - text.start for text in read.texts]
        parts = [picked[:n] for picked, n in zip(read.picked, counts, strict=True)]
        logits = self._logits(torch.cat(parts))
        said = torch.tensor([token for text in read.texts for token in text.reply])
        logs = logits.log_softmax(dim=-1).gather(1, said.to(logits.device)[:, None])[:, 0]
        return _by_text(logs, counts)

    def drift(self, read: Read) -> Float[Tensor, " text"]:
        """KL(unsteered ‖ steered) per token of what follows each reply; 0 where nothing does."""
        counts = [len(text.ids) - text.end for text in read.texts]
        if not any(counts):
            return torch.zeros(len(counts), device=self.model.cfg.device)
        after, before = (
            self._logits(
                torch.cat([one[len(one) - n :] for one, n in zip(some.picked, counts, strict=True)])
            ).log_softmax(dim=-1)
            for some in (read, self.unsteered(read.texts))
        )
        kl = kl_div(after, before, reduction="none", log_target=True).sum(dim=-1)
        found = _by_text(kl, counts)
        return found.values.sum(dim=1) / found.real.sum(dim=1).clamp_min(1)

    def first_stream(self, texts: Sequence[ReplyText]) -> TokenStream:
        """The unsteered stream of prompts and replies where the vector is added first."""
        ends = torch.tensor([text.end for text in texts])[:, None]
        place = torch.arange(max(text.end for text in texts))[None]
        values = pad_sequence([self._own_stream(text) for text in texts], batch_first=True)
        real = ((place > 0) & (place < ends)).to(values.device)
        return TokenStream(values[:, : real.shape[1]], real)

    def _own_stream(self, text: ReplyText) -> Float[Tensor, "pos d_model"]:
        layer, site = self.plan.layers_steered[0], self.plan.site_written
        if self.streams is not None and site in ("resid_pre", "resid_post"):
            own = self.streams.kept[self.streams.places[text.ids]]
            return torch.cat([self.streams.shared[0].float(), own.to(self.streams.shared.device)])
        if text.ids not in self._read:
            [self._read[text.ids]] = every_token(self.model, text.ids, [(site, layer)]).values()
        return self._read[text.ids].to(self.model.cfg.device)

    def _logits(
        self, picked: Float[Tensor, "predicted width"]
    ) -> Float[Tensor, "predicted d_vocab"]:
        """Of what was picked of a pass, in float32."""
        if self.streams is None:
            return picked.float()
        work = partial(unembedded, self.model, picked[:, None])
        return forward_pass(self.model, work, frozen=True)[:, 0].float()

    def _picked(
        self,
        texts: Sequence[ReplyText],
        rows: Int[Tensor, " predicted"],
        places: Int[Tensor, " predicted"],
        directions: Float[Tensor, "layer d_model"],
        strength: RowStrength,
        edit: Callable[..., Any] | None,
    ) -> Float[Tensor, "predicted width"]:
        """The last block's output after these tokens of these rows; of a whole model, logits."""
        where = steered_places(texts, self.plan.positions, self.plan.skip_bos)
        plan = LearnedSteering(
            self.plan.vector,
            edit=edit or self.plan.edit,
            positions=self.plan.positions,
            skip_bos=self.plan.skip_bos,
            keep_norm=self.plan.keep_norm,
            live=directions,
        )
        hooks = partial(_hooks, plan, strength, texts, where, model=self.model)
        if self.streams is None:
            return self._of_whole_model(texts, rows, places, hooks)
        n_shared = self.streams.n_shared
        equal = where[:, :n_shared] == where[:1, :n_shared]
        alike = isinstance(strength, float) and bool(equal.all())
        rest = self.streams.batch(texts, self.streams.shared)
        cache = None
        if not alike:
            shared = self.streams.shared.expand(len(texts), -1, -1)
            rest, n_shared = torch.cat([shared, rest], dim=1), 0
        elif n_shared:
            cache = self._after_shared(hooks(slice(0, n_shared), 1), len(texts))
        own = slice(n_shared, where.shape[1])
        upper = partial(_upper, self.model, rest, self.streams.start, cache)
        resid = self._steered(upper, hooks(own, len(texts)))
        return resid[rows, places - n_shared]

    def _after_shared(self, hooks: Sequence[NamedHook], n_texts: int) -> Cache:
        """Keys and values of the tokens that all texts begin with, for each text."""
        assert self.streams is not None
        cache = new_cache(self.model, 1)
        shared, start = self.streams.shared, self.streams.start
        self._steered(partial(_upper, self.model, shared, start, cache), hooks)
        for entry in cache.entries:
            entry.past_keys = entry.past_keys.expand(n_texts, -1, -1, -1)
            entry.past_values = entry.past_values.expand(n_texts, -1, -1, -1)
        return cache

    def _of_whole_model(
        self,
        texts: Sequence[ReplyText],
        rows: Int[Tensor, " predicted"],
        places: Int[Tensor, " predicted"],
        hooks: Callable[..., list[NamedHook]],
    ) -> Float[Tensor, "predicted d_vocab"]:
        ids = [text.ids for text in texts]
        tokens, _ = right_padded(ids, pad_token(self.model), self.model.cfg.device)
        every = slice(0, tokens.shape[1])
        work = partial(all_logits, self.model, tokens)
        return self._steered(work, hooks(every, len(texts)))[rows, places]

    def _steered(self, work: Callable[[], Result], hooks: Sequence[NamedHook]) -> Result:
        return forward_pass(self.model, work, placed(self.model, hooks), frozen=True)


def _n_predicted(text: ReplyText) -> int:
    return len(text.ids) - text.start


def _predicting(
    texts: Sequence[ReplyText],
) -> tuple[Int[Tensor, " predicted"], Int[Tensor, " predicted"]]:
    """The row, and the place before, of every token after each text's prompt."""
    rows = [row for row, text in enumerate(texts) for _ in range(_n_predicted(text))]
    places = [place - 1 for text in texts for place in range(text.start, len(text.ids))]
    return torch.tensor(rows), torch.tensor(places)


def _by_text(values: Float[Tensor, " token"], counts: Sequence[int]) -> TokenLogs:
    """Values of all texts' tokens, one text a line."""
    real = torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]
    real = real.to(values.device)
    return TokenLogs(values.new_zeros(real.shape).masked_scatter(real, values), real)


def _hooks(
    plan: Steering,
    strength: RowStrength,
    texts: Sequence[ReplyText],
    where: Bool[Tensor, "text place"],
    places: slice,
    n_rows: int,
    *,
    model: Model,
) -> list[NamedHook]:
    """The hooks of the very run that `Steering` makes, for these places of the first rows."""
    if isinstance(strength, float) and not strength:
        return []
    end = places.stop
    lengths = torch.tensor([len(text.ids) for text in texts[:n_rows]])[:, None]
    clock = DecodingClock(torch.arange(end)[None] < lengths.clamp_max(end))
    clock.show(places.start, end - places.start)
    if isinstance(strength, float):
        plan = replace(plan, strength=strength)
        everywhere = torch.tensor([plan.strengths] * n_rows)
    else:
        each = plan.at_each_layer(strength)
        everywhere = each[:, None].expand(-1, len(plan.layers_steered))
    settings = RowSettings(
        everywhere, torch.ones(everywhere.shape, dtype=torch.bool), where[:n_rows, :end]
    )
    by_row = not (isinstance(strength, float) and plan.everywhere)
    return Run([(plan, settings if by_row else None)], clock, model).hooks()


def _upper(
    model: Model, stream: Float[Tensor, "row pos d_model"], start: Start, cache: Cache | None
) -> Float[Tensor, "row pos d_model"]:
    """What the last block puts out, given the stream at the beginning of the steered part."""
    if start.point is not None:
        stream = model.hook_dict[start.point](stream)
    resid: Tensor = model(
        stream,
        start_at_layer=start.block,
        stop_at_layer=model.cfg.n_layers,
        past_kv_cache=cache,
    )
    return resid
