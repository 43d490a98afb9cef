"""Names, shapes and dtypes of the released checkpoints: `{"name": [[shape], "dtype"]}` by model."""
