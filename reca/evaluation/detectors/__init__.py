"""Neural parts of scoring, each with a small protocol: detections, colours, answers, similarities.

What a network says becomes a row of a file (`evidence.jsonl`); scoring reads rows and knows no network.
"""
