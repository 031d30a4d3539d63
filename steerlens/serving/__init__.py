"""An OpenAI-compatible server: each request steered by a plan of its own, all in one batch."""
