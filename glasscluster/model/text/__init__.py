"""Texts and data: tokenizer, documents, packing, sampling, tasks."""
