"""The one loop and its bookkeeping: rows, layout, prefill, commit, text."""
