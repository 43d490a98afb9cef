"""Model families behind one contract, with one registry entry each; a family is imported only when requested."""
