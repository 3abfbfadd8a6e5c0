"""Laws over the next token: what changes the model's logits, at every place where a draft may stand."""
