"""Between text and tokens: tokenizers, chat templates, streams of text."""
