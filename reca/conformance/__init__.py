"""The contract of `reca.models.contract`, checked on any implementation: ours, or one of another package.

`suite.run` gives one outcome per check; `reca check-model` prints them, and `reca.conformance.plugin` makes each of
them a test of pytest. Nothing heavy is imported here: pytest loads the plugin in every run.
"""
