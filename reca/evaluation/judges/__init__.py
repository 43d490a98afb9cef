"""Judges: requests, the endpoint that replies to them, and the ledger of all replies."""
