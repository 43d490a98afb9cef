"""The networks of the observers, each with a small interface: detections, colours, answers, similarities.

Their outputs become rows of `evidence.jsonl`; scoring reads these rows and runs no network.
"""
