"""The tokenizer tier: text in, text out, token ids in between."""
