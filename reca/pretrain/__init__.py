"""Making the laptop's base model from nothing: words, image tokenizer, reader, language model. The
paper's families start from released checkpoints instead and never come here.
"""
