"""Checks of `reca.models.contract` for any implementation, built in or from another package.

`suite.run` yields one outcome per check; `reca check-model` prints them, and `reca.conformance.plugin` turns each check
into a pytest test. Nothing heavy is imported here, because pytest loads the plugin in every run.
"""
