"""An OpenAI-compatible server of models' folders, and its page."""
