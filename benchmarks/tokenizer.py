"""Our tokenizer beside Hugging Face's `tokenizers`, in one run on one core: training 8,192 merges on 10 MB,
and encoding.

Goal: training in less than a minute. The text is the standard library with its packages; both learn the same
merges, or there is no figure.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

SIZE, MERGES = 10_000_000, 8192
ENCODED = 2_000_000


def _seconds(f: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = f()
    return time.perf_counter() - begun, found


def measure() -> dict[str, Any]:
    """Seconds and rates of both, and how many times as long ours takes."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer as Theirs
    from tokenizers import models, pre_tokenizers, trainers

    from glasscluster.model.text.pre_tokens import spelled
    from glasscluster.model.text.texts import standard_library
    from glasscluster.model.text.tokenizer import Tokenizer

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        texts = [text.decode(errors="ignore") for text in standard_library(SIZE, deep=True)]
        data = [text.encode() for text in texts]
        theirs = Theirs(models.BPE())
        theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=256 + MERGES, initial_alphabet=alphabet, show_progress=False)
        our_training, ours = _seconds(lambda: Tokenizer.train(data, 256 + MERGES))
        their_training, _ = _seconds(lambda: theirs.train_from_iterator(texts, trainer))
        merges = [tuple(pair) for pair in json.loads(theirs.to_str())["model"]["merges"]]
        if merges != [(spelled(ours.tokens[a]), spelled(ours.tokens[b])) for a, b in ours.merges]:
            raise AssertionError("the two learned different merges")
        text = "".join(texts)[:ENCODED]
        our_encoding, our_tokens = _seconds(lambda: ours.encode(text))
        their_encoding, their_tokens = _seconds(lambda: theirs.encode(text).ids)
        again, _ = _seconds(lambda: ours.encode(text))
        if our_tokens != their_tokens:
            raise AssertionError("the two encode differently")
    finally:
        os.sched_setaffinity(0, cores)
    size = len(text.encode())
    return {
        "text_bytes": sum(map(len, data)),
        "merges": MERGES,
        "training_s (goal: 60)": round(our_training, 2),
        "tokenizers_training_s": round(their_training, 2),
        "training_ratio": round(our_training / their_training, 2),
        "encoding_mb_per_s": round(size / our_encoding / 1e6, 3),
        "encoding_again_mb_per_s": round(size / again / 1e6, 3),
        "tokenizers_encoding_mb_per_s": round(size / their_encoding / 1e6, 3),
        "encoding_ratio": round(our_encoding / their_encoding, 2),
    }
