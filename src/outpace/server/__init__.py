"""The engine behind a port: an OpenAI-compatible server, its page, and what talks to it."""
