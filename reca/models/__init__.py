"""Model families: one contract, one registry entry each. Nothing is imported before a family is requested."""
