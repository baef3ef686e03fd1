"""Prompts to token ids without stalling the event loop.

A short text is encoded on the loop: encoding 200 characters takes about 60 µs and a hop to a thread and back 30 to
50 µs, so below that size the hop only costs. Those of one turn of the loop share a batch, up to a size, because the
first encoding after other work costs two to three times as much as the next. Longer ones, and conversations, go to
threads, where those that arrive together share one batch; the Rust code drops the interpreter lock meanwhile. Large
ones leave a thread to the others. The queue is bounded, and an item that fails, fails alone. Knows nothing of requests.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tokenizer_svc.chat_template import WEIGHED_CHARS, ChatTemplate, Conversation, no_template
from tokenizer_svc.encoding_cache import EncodingCache
from tokenizer_svc.prompt import too_long
from tokenizer_svc.prompt_encoder import CacheOutcome, PromptEncoder, PromptIds, PromptText
from tokenizer_svc.special_text import marked, unmarked
from tokenizer_svc.tokenizer import Tokenizer
from tokenwire.errors import InvalidRequest, Overloaded
from tokenwire.token_calls import refuse_text_size

INLINE_CHARS = 200
"""Texts up to this size are encoded on the event loop."""
INLINE_CONVERSATION_CHARS = 1_200
"""The same for a conversation, by `Conversation.num_chars`: two short messages and nothing else."""
INLINE_RENDER_S = 0.02
"""A template that has taken longer than this for a short conversation, of CPU time, is left to the threads."""
INLINE_BATCH_CHARS = 24_000
"""So much is encoded on the event loop in one go, some 2 ms; the rest in its next turn."""
MAX_BATCH_CHARS = 64 * 1024
"""A batch is closed at this size, so that nobody waits for another's book."""
LARGE_CHARS = WEIGHED_CHARS
"""Of several threads, one is kept free of prompts above this size."""
RETRY_AFTER_S = 0.5


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the model reads it."""

    text: str
    token_ids: list[int]
    queue_s: float = 0.0
    """From the call until encoding began."""
    encode_s: float = 0.0
    """Template and encoding, of the whole batch it was in."""
    num_cached: int = 0
    """Tokens that were not computed now."""
    cache_outcome: CacheOutcome | None = None
    """None without an encoding cache."""


@dataclass(slots=True, eq=False)
class _Job:
    source: str | Conversation
    split_special_tokens: bool
    salt: str
    arrival_s: float
    done: asyncio.Future[EncodedPrompt]

    num_chars: int
    max_context_tokens: int


class Encoder:
    """One per process. Close it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        model: str,
        *,
        window_s: float = 0.0,
        max_batch_size: int = 32,
        num_threads: int = 2,
        max_queued: int = 1024,
        cache: EncodingCache | None = None,
    ) -> None:
        """`window_s`: how long the first of a batch waits for others; 0: for those of the same turn of the loop."""
        self._tokenizer = tokenizer
        self._cache = cache
        self._prompts = PromptEncoder(tokenizer, cache)
        self._template = template
        self._model = model
        self._window_s = window_s
        self._max_batch_size = max_batch_size
        self._num_threads = num_threads
        self._max_queued = max_queued
        self._queue: deque[_Job] = deque()
        self._large: deque[_Job] = deque()
        self._inline: deque[_Job] = deque()
        """Short ones, for the next turn of the loop."""
        self._renders_slowly = False
        """The template took longer for a short conversation than the event loop has: it is not used there again."""
        self._num_running = 0
        self._num_large = 0
        self._timer: asyncio.Handle | None = None
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="encode")

    @property
    def cache_bytes(self) -> int:
        """What the encoding cache holds; 0 without one."""
        return 0 if self._cache is None else self._cache.num_bytes

    def close(self) -> None:
        """Stop the threads; what waits is cancelled."""
        for job in (*self._queue, *self._large, *self._inline):
            job.done.cancel()
        self._queue.clear()
        self._large.clear()
        self._inline.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def encode(
        self,
        source: str | Conversation,
        *,
        split_special_tokens: bool = False,
        salt: str = "",
        max_context_tokens: int = 0,
    ) -> EncodedPrompt:
        """A text with the tokenizer's own special tokens, or a conversation as its template writes them.

        `split_special_tokens`: what stands for special tokens in the text, or in what a client put into the
        conversation, is plain text. `salt`: what was encoded before is used again for equal salts only.
        `max_context_tokens`: a text that has no fewer tokens for sure is refused without being encoded; 0: none is.
        Raises InvalidRequest, also for a text above MAX_TEXT_CHARS, FailedPrecondition (no template) and Overloaded
        (the queue is full).
        """
        loop = asyncio.get_running_loop()
        if isinstance(source, str):
            num_chars, limit = len(source), INLINE_CHARS
        else:
            num_chars, limit = source.num_chars(), INLINE_CONVERSATION_CHARS
        if len(self._queue) + len(self._large) + len(self._inline) >= self._max_queued:
            raise Overloaded(
                f"{self._max_queued} prompts wait to be encoded already", reason="ENCODE_QUEUE_FULL",
                retry_after_s=RETRY_AFTER_S,
            )  # fmt: skip
        future = loop.create_future()
        job = _Job(source, split_special_tokens, salt, time.monotonic(), future, num_chars, max_context_tokens)
        if num_chars <= limit and not split_special_tokens and (not self._renders_slowly or isinstance(source, str)):
            if not self._inline:
                loop.call_soon(self._run_inline)
            self._inline.append(job)
        else:
            self._to_threads(job)
        try:
            return await job.done
        except asyncio.CancelledError:
            self._forget(job)
            raise

    def encode_here(self, source: str | Conversation, *, split_special_tokens: bool = False) -> EncodedPrompt:
        """As `encode`, in the caller's thread. Blocks."""
        text = self._text_of(source, split_special_tokens, "")
        (found,) = self._prompts.encode([text])
        if isinstance(found, Exception):
            raise found
        return EncodedPrompt(text.text, found.token_ids, num_cached=found.num_cached, cache_outcome=found.outcome)

    def render(self, conversation: Conversation) -> str:
        """The prompt text of a conversation. Blocks."""
        if self._template is None:
            raise no_template(self._model)
        return self._template.render(conversation)

    def _to_threads(self, job: _Job) -> None:
        (self._large if job.num_chars > LARGE_CHARS else self._queue).append(job)
        self._schedule()

    def _forget(self, job: _Job) -> None:
        """Its caller has left: it is no longer one of those that wait, nor is its text kept."""
        for queue in (self._queue, self._large, self._inline):
            if job in queue:
                queue.remove(job)

    def _run_inline(self) -> None:
        """Encode the short ones, here and now."""
        batch: list[_Job] = []
        num_chars = 0
        while self._inline and (not batch or num_chars + self._inline[0].num_chars <= INLINE_BATCH_CHARS):
            job = self._inline.popleft()
            if not job.done.done():
                batch.append(job)
                num_chars += job.num_chars
        if self._inline:
            asyncio.get_running_loop().call_soon(self._run_inline)
        if batch:
            self._run_batch(batch, _settle, self._stays_here)

    def _stays_here(self, job: _Job) -> bool:
        """Whether the event loop does it; with a template that has shown itself slow there, threads do."""
        if not self._renders_slowly or isinstance(job.source, str):
            return True
        self._to_threads(job)
        return False

    def _next_queue(self) -> deque[_Job] | None:
        """Where the next batch comes from: who came first goes first. None: nothing can begin."""
        if self._num_running >= self._num_threads:
            return None
        queues = [self._queue] if self._queue else []
        if self._large and self._num_large < max(1, self._num_threads - 1):
            queues.append(self._large)
        return min(queues, key=lambda queue: queue[0].arrival_s, default=None)

    def _schedule(self) -> None:
        """Start a batch now, soon, or when a thread is free."""
        if self._next_queue() is None:
            return
        loop = asyncio.get_running_loop()
        if len(self._queue) >= self._max_batch_size:
            self._start_batch()
        elif self._timer is None:
            late = self._window_s > 0
            self._timer = (
                loop.call_later(self._window_s, self._start_batch) if late else loop.call_soon(self._start_batch)
            )

    def _start_batch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queue = self._next_queue()
        if queue is None:
            return
        batch: list[_Job] = []
        num_chars = 0
        while queue and len(batch) < self._max_batch_size:
            if batch and num_chars + queue[0].num_chars > MAX_BATCH_CHARS:
                break
            job = queue.popleft()
            if not job.done.done():
                batch.append(job)
                num_chars += job.num_chars
        if batch:
            self._run_in_thread(batch, num_large=1 if queue is self._large else 0)
        self._schedule()

    def _run_in_thread(self, batch: list[_Job], num_large: int) -> None:
        self._num_running += 1
        self._num_large += num_large
        loop = asyncio.get_running_loop()

        def settle(job: _Job, result: EncodedPrompt | Exception) -> None:
            loop.call_soon_threadsafe(_settle, job, result)

        def ended(_: object) -> None:
            self._num_running -= 1
            self._num_large -= num_large
            self._start_batch()

        loop.run_in_executor(self._pool, self._run_batch, batch, settle).add_done_callback(ended)

    def _run_batch(
        self,
        batch: list[_Job],
        settle: Callable[[_Job, EncodedPrompt | Exception], None],
        takes: Callable[[_Job], bool] = lambda _: True,
    ) -> None:
        """Render and encode; every job is settled, with a result or its own error. In a thread, or inline.

        `takes`: asked before each; what it does not take is left out.
        """
        begun_s = time.monotonic()
        jobs: list[_Job] = []
        texts: list[PromptText] = []
        for job in filter(takes, batch):
            try:
                text = self._text_of(job.source, job.split_special_tokens, job.salt)
                self._refuse_too_long(text, job.max_context_tokens)
                texts.append(text)
                jobs.append(job)
            except Exception as error:
                settle(job, error)
        try:
            results = self._prompts.encode(texts)
        except Exception as error:  # a bug: nobody may wait for ever for it
            results = [error] * len(texts)
        encode_s = time.monotonic() - begun_s
        for job, text, result in zip(jobs, texts, results, strict=True):
            if isinstance(result, PromptIds):
                queue_s = begun_s - job.arrival_s
                settle(
                    job,
                    EncodedPrompt(text.text, result.token_ids, queue_s, encode_s, result.num_cached, result.outcome),
                )
            else:
                settle(job, result)

    def _refuse_too_long(self, prompt: PromptText, max_context_tokens: int) -> None:
        least_tokens = self._tokenizer.least_tokens
        if max_context_tokens and (least := least_tokens.beyond(prompt.text, max_context_tokens - 1)):
            raise too_long(f"at least {least}", max_context_tokens)
        if prompt.add_special_tokens:  # a client's text; what a template writes has a bound of its own
            refuse_text_size(prompt.text, "input")

    def _text_of(self, source: str | Conversation, split_special_tokens: bool, salt: str) -> PromptText:
        """What is encoded: a text, or a conversation as it is rendered."""
        if isinstance(source, str):
            return PromptText(source, True, split_special_tokens, salt=salt)
        begun_s = time.thread_time()
        try:
            return self._rendered(source, split_special_tokens, salt)
        finally:
            if time.thread_time() - begun_s > INLINE_RENDER_S and source.num_chars() <= INLINE_CONVERSATION_CHARS:
                self._renders_slowly = True

    def _rendered(self, source: Conversation, split_special_tokens: bool, salt: str) -> PromptText:
        specials = self._tokenizer.special_pattern
        if not split_special_tokens or specials is None:
            return PromptText(self.render(source), False, salt=salt)
        try:
            source, mark = marked(source, specials)
        except RecursionError:
            raise InvalidRequest.of("conversation", "is nested too deeply") from None
        text, plain = unmarked(self.render(source), mark)
        return PromptText(text, False, plain=plain, salt=salt)


def _settle(job: _Job, result: EncodedPrompt | Exception) -> None:
    if job.done.done():
        return  # the caller went away
    if isinstance(result, Exception):
        job.done.set_exception(result)
    else:
        job.done.set_result(result)
