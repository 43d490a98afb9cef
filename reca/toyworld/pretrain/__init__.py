"""Pre-training of the laptop's base models from scratch: vocabulary, image tokenizer, vision encoder, language model.

The paper's models start from released checkpoints instead. One module per family (`pretraining` of its entry in
`models.registry`) defines its parts; none is imported before it is used.
"""
