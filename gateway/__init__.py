"""The gateway: the tier clients call. Text in, text out; no model, no tokenizer."""
