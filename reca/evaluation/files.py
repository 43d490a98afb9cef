"""Names of the files that sampling, observation and scoring exchange."""

SAMPLES, IMAGES, ANSWERS = "samples.json", "images.tar", "answers.json"
EVIDENCE, FEATURES, LEDGER, JUDGE = (
    "evidence.jsonl",
    "features.safetensors",
    "ledger.jsonl",
    "judge.json",
)
SCORER = "scorer.json"
SCORES, ITEMS = "scores.json", "items.jsonl"
GUIDANCE, SWEEP = "guidance.json", "sweep.json"
