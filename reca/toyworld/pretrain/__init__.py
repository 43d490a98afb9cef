"""Making the laptop's base models from nothing: words, image tokenizer, reader, language model. The
paper's families start from released checkpoints instead and never come here.

One module per family (`pretraining` of its entry in `models.registry`) says what its parts are; none is imported before
it is used.
"""
