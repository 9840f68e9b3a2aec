"""Files of llama.cpp (GGUF): read as HuggingFace folders, and written from them."""
