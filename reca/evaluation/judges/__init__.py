"""Judges: what is asked, the ledger of every reply, and the endpoint that answers."""
