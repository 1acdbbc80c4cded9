"""Vision-language models: the embedded one, and any Hugging Face folder or id."""
