"""Every operation of a cache, in any order, against DynamicCache: a state machine under `full`."""

from __future__ import annotations

import copy
import pickle

import torch
from conftest import CACHE, VERSION, StockCache, tiny
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import mikv.hf

MODEL = {kind: tiny(kind) for kind in ("llama", "gemma3")}


class Operations(RuleBasedStateMachine):
    """Both caches get the same operations; the same tokens then have the same logits."""

    @initialize(kind=st.sampled_from(sorted(MODEL)), rows=st.integers(1, 3))
    def begin(self, kind, rows):
        self.model = MODEL[kind]
        self.window = kind == "gemma3"
        self.stock, self.ours = StockCache(config=self.model.config), mikv.hf.Cache("full", config=self.model.config)
        self.rows, self.mask = rows, torch.ones(rows, 0, dtype=torch.long)
        self.seed = 0
        self.feed(5, False)

    def tokens(self, n):
        self.seed += 1
        return torch.randint(2, 97, (self.rows, n), generator=torch.Generator().manual_seed(self.seed))

    def forward(self, cache, attention, ids, mask):
        self.model.set_attn_implementation(attention)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with torch.no_grad():
            return self.model(ids, attention_mask=mask, position_ids=positions, **{CACHE: cache}).logits

    @rule(n=st.sampled_from([1, 1, 2, 5, 9]), padding=st.booleans())
    def feed(self, n, padding):
        if self.mask.shape[1] + n > 200:
            return
        ids, new = self.tokens(n), torch.ones(self.rows, n, dtype=torch.long)
        if padding and n > 1 and not self.window:  # a row that has nothing yet to say
            new[self.seed % self.rows, : n - 1] = 0
        self.mask = torch.cat([self.mask, new], 1)
        want = self.forward(self.stock, "sdpa", ids, self.mask)
        got = self.forward(self.ours, "mikv", ids, self.mask)
        real = new.bool()
        # A sum that is rounded otherwise may round a later layer's key to the next half, 2^-11 away. That moves a logit by
        # up to 0.002 (300 seeds of these models, whose logits are about 5); another token or mask moves it by about 1.
        torch.testing.assert_close(got[real], want[real], atol=1e-2, rtol=0)
        assert (got[real] - want[real]).abs().mean() < 1e-3  # one key moves few logits so far
        assert self.ours.get_seq_length() == self.stock.get_seq_length() == self.mask.shape[1]

    @precondition(lambda self: hasattr(self, "rows"))
    @rule(data=st.data())
    def reorder(self, data):
        index = torch.tensor(data.draw(st.lists(st.integers(0, self.rows - 1), min_size=self.rows, max_size=self.rows)))
        for cache in (self.stock, self.ours):
            cache.reorder_cache(index)
        self.mask = self.mask[index]

    @precondition(lambda self: getattr(self, "rows", 9) <= 3)
    @rule(repeats=st.integers(1, 2))
    def repeat(self, repeats):
        for cache in (self.stock, self.ours):
            cache.batch_repeat_interleave(repeats)
        self.rows *= repeats
        self.mask = self.mask.repeat_interleave(repeats, 0)

    @precondition(lambda self: getattr(self, "rows", 1) > 1)
    @rule(data=st.data())
    def select(self, data):
        index = torch.tensor(data.draw(st.lists(st.integers(0, self.rows - 1), min_size=1, max_size=self.rows)))
        for cache in (self.stock, self.ours):
            cache.batch_select_indices(index)
        self.rows, self.mask = len(index), self.mask[index]

    @precondition(lambda self: hasattr(self, "mask") and not (self.window and self.mask.shape[1] >= 20))
    @rule(n=st.integers(0, 4))
    def crop(self, n):
        n = min(n, self.mask.shape[1] - 1)
        if not bool(self.mask[:, : self.mask.shape[1] - n].any(1).all()):
            return  # a row of nothing but padding has no attention to compare
        for cache in (self.stock, self.ours):
            cache.crop(-n if VERSION >= (5, 18) else self.mask.shape[1] - n)
        self.mask = self.mask[:, : self.mask.shape[1] - n]

    @precondition(lambda self: hasattr(self, "ours"))
    @rule(how=st.sampled_from(["copy", "pickle"]))
    def replace_by_a_copy(self, how):
        self.ours = copy.deepcopy(self.ours) if how == "copy" else pickle.loads(pickle.dumps(self.ours))

    @precondition(lambda self: hasattr(self, "ours"))
    @rule()
    def reset(self):
        self.stock, self.mask = StockCache(config=self.model.config), self.mask[:, :0]
        self.ours.reset()
        assert self.ours.get_seq_length() == 0
        self.feed(4, False)


Operations.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestOperations = Operations.TestCase
