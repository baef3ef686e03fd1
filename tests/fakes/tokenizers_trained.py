"""Small tokenizers trained on the spot, one per family, so that tests need no model."""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "The capital of France is Paris. The capital of Japan is Tokyo.",
    "def main():\n    return {'key': [1, 2, 3]}\n\n\tprint(\"done\")",
    "Größe, naïve café, Ελλάδα, русский, 日本語, 한국어, 😀👩‍👩‍👧 emoji.",
    "Once upon a time there was a token, and the token was many bytes long; it wasn't alone.",
] * 4
SPECIALS = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_level_bpe() -> tokenizers.Tokenizer:
    """As GPT-2, Llama 3, Qwen, SmolLM2."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_fallback_bpe() -> tokenizers.Tokenizer:
    """As Llama 2, Mistral, Gemma: spaces are ▁, what the vocabulary lacks is bytes."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    latin = [text.encode("ascii", "ignore").decode() for text in CORPUS]
    trained.train_from_iterator(
        latin, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIALS, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    vocab = dict(model["vocab"])
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    return tokenizer


def unigram() -> tokenizers.Tokenizer:
    """As T5, XLM-R: SentencePiece's other model."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_piece() -> tokenizers.Tokenizer:
    """As BERT."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIALS, show_progress=False)
    )
    return tokenizer


def words_alone() -> tokenizers.Tokenizer:
    """Some words, and nothing that stands for others: at each of these the library raises a plain Exception."""
    vocabulary = {word: number for number, word in enumerate(("hello", "world", "a", "b", "c", "d"))}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


TRAINED = {
    "byte_level_bpe": byte_level_bpe,
    "byte_fallback_bpe": byte_fallback_bpe,
    "unigram": unigram,
    "word_piece": word_piece,
}


def write_folder(
    folder: Path, tokenizer: tokenizers.Tokenizer | None = None, *, chat_template: str | None = CHATML
) -> Path:
    """A model folder as far as the tokenizer tier looks at one; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (tokenizer or byte_level_bpe()).save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}, "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    return folder
