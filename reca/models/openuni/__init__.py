"""OpenUni: a frozen InternVL3 reads, learned queries look at what it read, and SANA generates from them."""
